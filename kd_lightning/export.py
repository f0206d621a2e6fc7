"""The student's own files: weights beside everything needed to use them, without the trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import nn

from kd_lightning.artifacts import FORMAT_VERSION, write_json, writing
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.teacher.weights import load_weights

TRUSTED = ("kd_lightning.", "torchvision.", "torch.nn.", "timm.")


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
    target = card["network"]["_target_"]
    if not trust and not target.startswith(TRUSTED):
        raise UserError(f"{folder}: the network {target} is none of ours; load_student(..., trust=True) imports it")
    network = Normalized(instantiate(card["network"]), mean=card["mean"], std=card["std"])
    load_weights(network, folder / "student.safetensors")
    network.card = card
    return network.eval()
