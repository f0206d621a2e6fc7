"""A student's files: weights and card, as safetensors or ONNX, usable without the trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kd_lightning.core import strangers
from kd_lightning.core.file_format import FORMAT_VERSION, refuse_format
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Regression, answers_to, task_of
from kd_lightning.data.datasets.image_files import Resize
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.outputs import resized
from kd_lightning.networks.weights import load_weights, write_weights
from kd_lightning.results import trusted
from kd_lightning.results.run_index import read_result
from kd_lightning.store.files import write_json, writing

CARD = ("network", "classes", "image_shape", "mean", "std")
IN_MEMORY, DATA_IN_MEMORY = "kd_lightning.api.held", "kd_lightning.api.held_data"
RESIZES = get_args(Resize)
LARGEST_SIDE = 2048
"""Largest side of a student's images, in pixels."""
FAR = 0.5
"""How far outside [0, 1] images may be, as perturbed ones are; normalised ones and pixels up to 255 are farther."""


class Student(Normalized):
    """A trained network with its card (class names, image shape, metrics, provenance) and its folder.

    ``resize`` lets it take images of any height and width, which are resized to those it was trained on.
    """

    card: dict[str, Any]
    folder: Path
    resize = False

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K), (N, 1) for regression, or (N, K, H, W) for segmentation.

        Raises:
            UserError: the images are not of the kind that it was trained on, the network fails, its answers are not
                finite, or their shape differs from the card's.
        """
        if torch.compiler.is_compiling():
            return super().forward(x)
        x = self._taken(x)
        try:
            answers = super().forward(x)
        except Exception as error:  # whatever the network raises
            reason = strangers.in_a_line(error)
            raise UserError(f"the student in {self.folder} fails on images {tuple(x.shape)}: {reason}") from error
        wanted = answers_to(task_of(self.card), x)
        found = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
        if found != wanted:
            raise UserError(f"the student in {self.folder} answers {found}, its card says {wanted}")
        if not answers.isfinite().all():
            raise UserError(f"the student in {self.folder} answers NaN or infinity: train it anew, or copy it again")
        return answers

    def _taken(self, x: Tensor) -> Tensor:
        """The images, resized where ``resize`` allows it.

        Raises:
            UserError: their type, shape or range is not that of the images that the student was trained on.
        """
        wanted = tuple(self.card["image_shape"])
        free = isinstance(task_of(self.card), Segmentation)  # the network takes any height and width
        shape = "x".join(map(str, wanted))
        asked = f"{wanted[0]}, H, W" if free else ", ".join(map(str, wanted))
        said = f"the student in {self.folder} takes images (N, {asked}) in [0, 1], float32"
        if not isinstance(x, Tensor) or x.dtype != self.mean.dtype:
            kind = str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else type(x).__name__
            how = ": x.float() / 255 makes them from pixels" if kind == "uint8" else ""
            raise UserError(f"{said}, got {kind}{how}")
        if x.dim() != 4 or x.shape[1] != wanted[0]:
            raise UserError(f"{said}, got {tuple(x.shape)}")
        if tuple(x.shape[1:]) != wanted and not free:
            if not self.resize:
                raise UserError(f"{said}, got {tuple(x.shape)}: student.resize = True resizes them to {shape}")
            x = resized(x, wanted[1:])
        if len(x):
            low, high = (float(v) for v in x.detach().aminmax())
            if not (low >= -FAR and high <= 1 + FAR):  # false for NaN as well
                raise UserError(f"{said}, got [{low:.3g}, {high:.3g}]: it normalises them itself")
        return x


def save_student(network: nn.Module, folder: Path, card: Mapping[str, Any]) -> None:
    """Write ``student.safetensors`` and ``student.json``.

    Args:
        network: the student.
        folder: of the files.
        card: ``network`` (its config), ``classes``, ``image_shape``, ``mean``, ``std`` and further entries.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    with writing(folder):
        metadata = {"format_version": str(FORMAT_VERSION), "classes": json.dumps(card["classes"])}
        write_weights(state, folder / "student.safetensors", metadata)
    write_json(folder / "student.json", {"format_version": FORMAT_VERSION, **card})


def save_single(student: Student, file: Path) -> None:
    """Write a loaded student as one safetensors file that includes its card; :func:`load_student` reads it."""
    state = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_weights(state, file, {"format_version": str(FORMAT_VERSION), "card": json.dumps(student.card)})


def load_student(path: str | Path, *, network: nn.Module | None = None, trust: bool = False) -> Student:
    """The student of a run folder: images (N, C, H, W) in [0, 1] to logits (N, K) or (N, K, H, W), in eval mode.

    Its card is ``.card``: class names, image shape, metrics. For regression it answers (N, 1), places in the range that
    the card gives; ``core.tasks.task_of(card).numbers(answers)`` converts them to numbers.

    Args:
        path: a run folder, any folder with ``student.safetensors`` and ``student.json``, or a single file written by
            ``kd-export --safetensors``.
        network: the student's network, which receives the weights; by default it is built as the card says.
        trust: build networks from anywhere. The card names the Python class of the network; by default only those of
            this package, of ``torch.nn`` and torchvision's without pretrained weights are built.

    Raises:
        UserError: no student there, another format version, an untrusted class, or weights that do not fit.
    """
    path = Path(path).expanduser()
    single = not path.is_dir() and path.exists()
    weights = path if single else path / "student.safetensors"
    where = path if single else path / "student.json"
    card = _card_inside(path) if single else _card_of(path)
    refuse_format(card.get("format_version"), where, "run it anew, or use the version that wrote it")
    if missing := [key for key in CARD if key not in card]:
        raise UserError(f"the card of the student in {path} lacks {', '.join(missing)}: copy the run folder again")
    with strangers.reading(where, said=f"{where} is not the card of a student"):
        _refuse_card(card, trust=trust)
    net = _built(card, path, weights, trust=trust) if network is None else network
    student = Student(net, mean=card["mean"], std=card["std"])
    load_weights(student, weights)
    student.card, student.folder = card, path if path.is_dir() else path.parent
    return student.eval()


def _card_of(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the folder of a finished run")
    try:
        result = read_result(folder)
    except (FileNotFoundError, UserError):
        result = {"status": "ok"}  # a student can be used without a result
    missing = [name for name in ("student.json", "student.safetensors") if not (folder / name).exists()]
    if result["status"] == "failed" or (missing and result["status"] != "ok"):
        reason = (str(result.get("reason") or "").splitlines() or ["no reason given"])[0]
        raise UserError(f"{folder} holds no student, its run {result['status']}: {reason}")
    if missing:
        raise UserError(f"{folder} holds no student: {missing[0]} is missing. Name the folder of a finished run")
    file = folder / "student.json"
    card = strangers.read_json(file, advice="it is perhaps half-written, copy it again")
    if not isinstance(card, dict):
        raise UserError(f"{file} is not the card of a student")
    return card


def _card_inside(file: Path) -> dict[str, Any]:
    said = f"{file} is no student that kd-export wrote"
    with strangers.reading(file, said=said, advice="name such a file, or the folder of a finished run"):
        with safe_open(file, framework="pt") as content:
            card = strangers.refuse_odd(json.loads((content.metadata() or {})["card"]))
        if not isinstance(card, dict):
            raise TypeError("its card is a list")
        return card


def _refuse_card(card: Mapping[str, Any], *, trust: bool) -> None:
    """Raise unless a card's entries have the expected types.

    Raises:
        Exception: says what is wrong.
    """
    if not trust:
        strangers.refuse_interpolations(dict(card))
    shape, classes, statistics = card["image_shape"], card["classes"], (card["mean"], card["std"])
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)):
        raise ValueError("image_shape: expected three whole numbers")
    task = task_of(card)
    if not 1 <= shape[0] <= 16 or not all(1 <= side <= LARGEST_SIDE for side in shape[1:]):
        raise ValueError(f"image_shape: expected up to 16 channels and sides of at most {LARGEST_SIDE} pixels")
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError("classes: expected a list of names")
    for values in statistics:
        numbers = isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
        if not numbers or len(values) != shape[0]:
            raise ValueError("mean and std: expected a number for each channel")
    if card.get("resize", "crop") not in RESIZES:
        raise ValueError(f"resize: expected one of {', '.join(RESIZES)}")
    if not isinstance(card["network"], dict) or not isinstance(card.get("metrics") or {}, dict):
        raise ValueError("network and metrics: expected mappings")
    if isinstance(task, Regression):
        if classes or not isinstance(task.unit, str):
            raise ValueError("task: numbers have a unit, and no classes")
    elif type(task.num_classes) is not int or task.num_classes != len(classes) or not classes:
        raise ValueError(f"task: {len(classes)} classes have names")


def _built(card: Mapping[str, Any], path: Path, weights: Path, *, trust: bool) -> nn.Module:
    if card["network"].get("_target_") == IN_MEMORY:
        raise UserError(f"{path}: its network was handed over in memory; load_student(..., network=YOURS) takes it")
    try:
        with strangers.reading(weights, said=f"{path}: its network cannot be built here", advice="copy it again"):
            return trusted.network(card["network"], trust=trust, most=room_for(weights))
    except trusted.Untrusted as error:
        raise UserError(
            f"{path}: the network {error}; load_student(..., trust=True) or --trust builds it all the same"
        ) from error


def room_for(weights: Path) -> int:
    """Bytes allowed for a network whose weights are in a file, perhaps in half precision: 8 times its size and 1 MB."""
    return 8 * weights.stat().st_size + 1_000_000
