"""The student's own files: weights beside everything needed to use them, without the trainer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from safetensors.torch import save_file
from torch import nn

from kd_lightning.artifacts import FORMAT_VERSION, write_json, writing
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.teacher.weights import load_weights

TRUSTED = ("kd_lightning.networks.", "torchvision.models.", "torch.nn.", "timm.")


def save_student(network: nn.Module, folder: Path, card: Mapping[str, Any]) -> None:
    """Write ``student.safetensors`` and ``student.json``.

    Args:
        network: the student.
        folder: where.
        card: ``network`` (its config), ``classes``, ``image_shape``, ``mean``, ``std`` and whatever else is known.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    with writing(folder):
        save_file(state, folder / "student.safetensors", metadata={"classes": json.dumps(card["classes"])})
    write_json(folder / "student.json", {"format_version": FORMAT_VERSION, **card})


def load_student(folder: str | Path, *, trust: bool = False) -> nn.Module:
    """The student of a run folder: images (N, C, H, W) in [0, 1] to logits (N, K), in eval mode.

    Its card is at ``.card``: class names, image shape, metrics.

    Args:
        folder: a run folder, or any folder with ``student.safetensors`` and ``student.json``.
        trust: build networks from anywhere. The card names the Python class of the network; by default only
            those of this package, torch, torchvision and timm are imported.

    Raises:
        UserError: no student there, another format version, or an untrusted class.
    """
    folder = Path(folder)
    for name in ("student.json", "student.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no student: {name} is missing. Name the folder of a finished run")
    card = json.loads((folder / "student.json").read_text())
    if card.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder / 'student.json'} has format {card.get('format_version')}, this version reads {FORMAT_VERSION}"
        )
    for target in _targets(card["network"]):
        if not (trust or _trusted(target)):
            raise UserError(f"{folder}: the network {target} is none of ours; load_student(..., trust=True) imports it")
    network = Normalized(instantiate(card["network"]), mean=card["mean"], std=card["std"])
    load_weights(network, folder / "student.safetensors")
    network.card = card
    return network.eval()


def _targets(node: Any) -> Iterator[str]:
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _targets(value)
    if isinstance(node, Mapping) and "_target_" in node:
        yield node["_target_"]


def _trusted(target: str) -> bool:
    """Whether it is a network's class or maker; a dotted path through our modules may end anywhere."""
    if not target.startswith(TRUSTED):
        return False
    found = get_object(target)
    makes_networks = inspect.isclass(found) and issubclass(found, nn.Module)
    return makes_networks or (inspect.isfunction(found) and found.__module__.startswith(("torchvision.models", "timm")))
