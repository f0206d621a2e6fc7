"""Distillation of a teacher in memory in one call, which runs the same code as the command line."""

from __future__ import annotations

import copy
import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from kd_lightning.config import resolvers
from kd_lightning.config.check import examined
from kd_lightning.config.overrides import read, refusal
from kd_lightning.config.record import chosen, leave, put
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.user_code import fingerprint
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.in_memory import split_of
from kd_lightning.errors import UserError
from kd_lightning.results.student_files import DATA_IN_MEMORY, IN_MEMORY, Student, load_student
from kd_lightning.store.artifacts import Store
from kd_lightning.store.files import writing

EPOCHS = 60
"""Passes over the images of a call, unless its settings say ``data__recipe__epochs`` or ``trainer__max_epochs``."""
MULTI_LABEL = f"{MultiLabel.__module__}.{MultiLabel.__name__}"
_HELD: dict[str, Any] = {}
"""Networks and data that a composition refers to by fingerprint during a call."""


def distill(
    teacher: nn.Module,
    *,
    num_classes: int,
    image: tuple[int, int, int],
    method: str = "dafl",
    student: str | nn.Module = "small_conv_narrow",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    data: Any = None,
    train: Any = None,
    labels: Literal["classes", "several"] = "classes",
    folder: str | Path | None = None,
    config_dir: str | Path | None = None,
    **settings: Any,
) -> Student:
    """Distil ``teacher`` into a small network, without training images or with yours.

    Repeating an interrupted call resumes it; repeating a finished one returns its stored student.

    Args:
        teacher: images (N, C, H, W), in [0, 1] or normalised by ``mean`` and ``std``, to logits (N, num_classes).
            It is copied and stays as it is.
        num_classes: K.
        image: (C, H, W) of its images.
        method: name of a method, as ``kd-lightning method=NAME`` takes it.
        student: name of a network, as ``kd-lightning student=NAME`` takes it, or a network, of which a copy is
            trained, starting from its weights.
        mean: per channel, what is subtracted from an image in [0, 1] before the teacher sees it; None if the teacher
            takes images as they are.
        std: per channel, what it is divided by.
        classes: names of the K classes; None for 0 to K - 1.
        data: images and labels to test on, which are not used for training: a pair of arrays or tensors, uint8 or
            floats in [0, 1], or a ``torch.utils.data.Dataset`` or ``DataLoader`` of such pairs. Without labels only
            agreement with the teacher is measured.
        train: images to train on, of the same kinds, for methods that take them: ``method="kd"``. Without labels,
            ``method__label=0`` trains on the teacher's answers only.
        labels: ``several`` where an image has any number of labels: those of ``train`` and ``data`` are then (N, K) of
            0 and 1, and the teacher's logits are of each label by itself.
        folder: the run folder; default is one named after method and time in ``runs``.
        config_dir: a folder with groups of your own, such as ``network/mine.yaml`` for ``student="mine"``.
        **settings: any other setting of the command, a dot written as two underscores: ``seed=1``,
            ``trainer__max_epochs=30``, ``teacher__access="logits"``.

    Returns:
        The student in eval mode: images (N, C, H, W) in [0, 1] to logits (N, num_classes). Its ``card`` holds the
        metrics; its ``folder`` is the run folder, which the other commands take.

    Raises:
        UserError: lists every fault of the arguments and settings.
    """
    from kd_lightning.core.log_filters import quiet
    from kd_lightning.results.run_lock import running
    from kd_lightning.run.run import run

    if not isinstance(teacher, nn.Module):
        raise UserError(
            f"teacher: expected a torch.nn.Module, got {type(teacher).__name__}; a function that answers is asked by "
            "kd-lightning teacher=callable teacher.function=my_module.ask"
        )
    _refuse_shapes(num_classes, image, mean, std, classes)
    parts = {"train": train, "data": data}
    if labels not in ("classes", "several") or (labels == "several" and train is None):
        raise UserError(f"labels={labels!r}: expected 'classes', or 'several' for images of yours, train=...")
    several = labels == "several"
    splits = {
        what: split_of(part, image, num_classes, what=what, several=several)
        for what, part in parts.items()
        if part is not None
    }
    overrides = _overrides(num_classes, image, method, student, mean, std, settings, trains=train is not None)
    resolvers.register()
    found = read(overrides, [str(config_dir)] if config_dir is not None else [])
    with _holding(teacher=teacher, student=student, data=splits or None) as keys, warnings.catch_warnings():
        quiet()
        cfg = put(
            found.cfg,
            _in_memory(keys, Store(chosen(found.cfg, "artifacts.root")), teacher, image, mean, classes, several),
        )
        names = _names(keys, method, student, settings, chosen(cfg, "source._target_"))
        wrong, composition = examined(cfg, names)
        if found.problems or wrong or composition is None:
            raise refusal(list(dict.fromkeys([*found.problems, *wrong])))
        if train is not None and not {"source.images", "source.labels"} & composition.method.requirements():
            raise UserError(f"train: method={method} makes its own images and would not see them; method='kd' does")
        folder = Path(folder) if folder is not None else _fresh_folder(method, names["data"], composition.seed)
        leave(cfg, overrides, names, folder)
        with running(folder):
            run(composition, folder)
        own = held(keys["student"]) if "student" in keys else None
        return load_student(folder, network=own, trust=True)


def held(key: str) -> nn.Module:
    """A copy of the network with this fingerprint; a composition's ``_target_`` for networks in memory.

    Raises:
        UserError: the call that was given the network has ended.
    """
    if key not in _HELD:
        raise UserError(f"the network {key} was handed over in memory and is gone")
    return copy.deepcopy(_HELD[key]).cpu()


def held_data(key: str, classes: Sequence[str] | int, image: Sequence[int], task: MultiLabel | None = None) -> Dataset:
    """The images with this fingerprint; a composition's ``_target_`` for data in memory.

    Args:
        key: the fingerprint.
        classes: names of the classes, or their number.
        image: (C, H, W).
        task: of several labels an image; None for classes.
    """
    if key not in _HELD:
        raise UserError(f"the data {key} were handed over in memory and are gone")
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
    splits = _HELD[key]
    shape = image[0], image[1], image[2]
    parts = splits.get("train"), None, splits.get("data")
    return Dataset("in_memory", names, *parts, "none", "raw", shape=shape, task=task)  # type: ignore[arg-type]


@contextmanager
def _holding(**things: Any) -> Iterator[dict[str, str]]:
    """Make networks and images available to ``held`` and ``held_data``; yields the fingerprint of each."""
    keys = {name: _fingerprint(thing) for name, thing in things.items() if isinstance(thing, nn.Module | dict)}
    _HELD.update({key: things[name] for name, key in keys.items()})
    try:
        yield keys
    finally:
        for key in set(keys.values()):
            _HELD.pop(key, None)


def _fingerprint(thing: Any) -> str:
    """First 12 hex digits of a hash of a network's code and state, or of images and labels, equal in every process."""
    if isinstance(thing, nn.Module):
        return fingerprint(thing)
    total = hashlib.sha256()
    for name, split in thing.items():
        for tensor in (split.images, split.labels if split.labelled else torch.empty(0)):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()[:12]


def _overrides(
    num_classes: int,
    image: tuple[int, int, int],
    method: str,
    student: str | nn.Module,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    settings: Mapping[str, Any],
    *,
    trains: bool,
) -> list[str]:
    """The arguments of the call as overrides of the command line."""
    said: dict[str, Any] = {"method": method, "data": "none", "teacher": "none", "controls": "none"}
    said |= {"student": student} if isinstance(student, str) else {}
    said |= {
        "data.num_classes": num_classes,
        "data.channels": image[0],
        "data.size": image[1] if image[1] == image[2] else list(image[1:]),
    }
    said |= {"data.recipe.epochs": EPOCHS} if trains else {}
    said |= {"data.mean": list(mean), "data.std": list(std)} if mean is not None and std is not None else {}
    said |= {key.replace("__", "."): value for key, value in settings.items()}
    return [f"{key}={_spelled(value)}" for key, value in said.items()]


def _spelled(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spelled(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if isinstance(value, str | Path):
        text = str(value)
        return text if text.replace("_", "").replace("/", "").isalnum() else "'" + text.replace("'", "\\'") + "'"
    return str(value)


def _in_memory(
    keys: Mapping[str, str],
    store: Store,
    teacher: nn.Module,
    image: tuple[int, int, int],
    mean: Sequence[float] | None,
    classes: Sequence[str] | None,
    several: bool,
) -> dict[str, Any]:
    """Settings that refer to the networks and data in memory: dotted key -> value."""
    values: dict[str, Any] = {"teacher.net": {"_target_": IN_MEMORY, "key": keys["teacher"]}}
    values["teacher.weights"] = str(_kept_weights(store, keys["teacher"], teacher))
    if mean is None:
        values |= {"teacher.mean": [0.0] * image[0], "teacher.std": [1.0] * image[0]}
    if "student" in keys:
        values["student"] = {"_target_": IN_MEMORY, "key": keys["student"]}
    if "data" in keys:
        what = {"key": keys["data"], "classes": "${data.num_classes}", "image": list(image)}
        task = {"task": {"_target_": MULTI_LABEL, "num_classes": "${data.num_classes}"}} if several else {}
        values["data.load"] = {"_target_": DATA_IN_MEMORY, **what, **task}
    if classes is not None:
        values["data.load.classes"] = list(classes)
    return values


def _kept_weights(store: Store, key: str, teacher: nn.Module) -> Path:
    def build(folder: Path) -> None:
        state = {name: value.detach().cpu().contiguous().clone() for name, value in teacher.state_dict().items()}
        with writing(folder):
            save_file(state, folder / "weights.safetensors")

    return store.obtain("weights", {"key": key, "version": 1}, build) / "weights.safetensors"


def _names(
    keys: Mapping[str, str], method: str, student: str | nn.Module, settings: Mapping[str, Any], source: str
) -> dict[str, str | None]:
    return {
        "method": method,
        "data": "in_memory" if "data" in keys else "none",
        "source": str(settings.get("source") or source.rpartition(".")[2].lower()),
        "teacher": "in_memory",
        "student": student if isinstance(student, str) else type(student).__name__,
        "scale": settings.get("scale", "small"),
        "experiment": None,
    }


def _fresh_folder(method: str, data: str | None, seed: int) -> Path:
    stem = Path("runs") / f"{method}_{data}" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_s{seed}"
    for i in count():
        folder = stem if i == 0 else stem.with_name(f"{stem.name}_{i}")
        if not folder.exists():
            return folder
    raise AssertionError


def _refuse_shapes(
    num_classes: int,
    image: tuple[int, int, int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: Sequence[str] | None,
) -> None:
    if len(image) != 3 or not all(type(n) is int and n > 0 for n in image):
        raise UserError(f"image={tuple(image)}: expected three whole numbers, (channels, height, width)")
    if (mean is None) != (std is None):
        raise UserError("mean and std belong together: give both, or none if the teacher takes images in [0, 1]")
    if classes is not None and len(classes) != num_classes:
        raise UserError(f"classes: {len(classes)} names for num_classes={num_classes}")
