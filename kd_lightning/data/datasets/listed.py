"""A data set of listed image files: decoded once, and divided into its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.sides import Size
from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset, Split, held_out
from kd_lightning.data.datasets.decoding import Cache, decoded
from kd_lightning.data.datasets.image_files import ENCODINGS, Resize
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Listed:
    """An image file in one part of a set, and its label: a class, a number, or 0 or 1 for each of several; or None."""

    path: Path
    part: str
    label: int | float | tuple[int, ...] | None = None


@dataclass(frozen=True)
class Reading:
    """How the files of a set are read.

    Args:
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        store: keeps decoded images; None decodes at each call.
        skip_bad: leave out files that cannot be decoded, and count them.
        resize: see :func:`~kd_lightning.data.datasets.image_files.decode`.
        cache: see :func:`~kd_lightning.data.datasets.decoding.decoded`.
    """

    size: Size
    channels: int = 3
    store: Store | None = None
    skip_bad: bool = False
    resize: Resize = "crop"
    cache: Cache = "memory"


def dataset_of(
    files: Sequence[Listed],
    reading: Reading,
    *,
    root: Path,
    name: str,
    classes: Sequence[str] = (),
    task: Regression | MultiLabel | None = None,
    shares: Mapping[str, int | float] | None = None,
    layout: str,
    unread: Mapping[str, int] | None = None,
    places: Mapping[str, str] | None = None,
) -> Dataset:
    """Read listed files into a data set.

    Args:
        files: in the order of the images; those of a part need not stand together.
        reading: how.
        root: folder that messages and keys name the files by.
        name: of the set.
        classes: names in the order of the labels; none where labels are numbers.
        task: the meaning of numbers, or of several labels; None for classes.
        shares: number or share of the training images held out as ``test`` or ``val`` where no file is listed for it.
        layout: for the result.
        unread: files that are of no kind that is read, by ending.
        places: where each part lies, for what is said of it.

    Raises:
        DataError: a file cannot be decoded, none of a class can, or too many images would be held out.
    """
    own = {file.part for file in files}
    for part, share in (shares or {}).items():
        if share and part not in own and "train" in own:
            files = _moved(files, part, share)
    on_disk = reading.cache == "disk"
    if on_disk:  # parts are then whole pieces of the file, not copies
        files = sorted(files, key=lambda file: PARTS.index(file.part))
    paths = [file.path for file in files]
    how = {key: getattr(reading, key) for key in ("size", "channels", "store", "skip_bad", "resize", "cache")}
    images, good, bad = decoded(root, paths, **how)
    kept = [files[i] for i in good.tolist()]
    for part, label in sorted({(f.part, f.label) for f in files} - {(f.part, f.label) for f in kept}):
        of = f"of class {classes[label]} " if classes and isinstance(label, int) else ""
        if of or part not in {f.part for f in kept}:
            raise DataError(f"{root}: no image {of}in the part {part} can be decoded")
    splits = {part: _split(images, kept, part) for part in PARTS if any(f.part == part for f in kept)}
    return Dataset(
        name=name,
        classes=list(classes),
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        layout=layout,
        encoding="+".join(sorted({ENCODINGS[path.suffix.lower()] for path in {file.path for file in kept}})),
        skipped=len(bad),
        unread=dict(sorted((unread or {}).items())),
        found=_told(splits, own, root, classes, task, places or {}),
        task=task,  # type: ignore[arg-type]  # None: classes
    )


def dataset_of_table(
    files: Sequence[Listed], reading: Reading, *, shares: Mapping[str, int | float], **what: Any
) -> Dataset:
    """The data set of the rows of a table; nothing is held out where none of them is for training.

    Args:
        files: one for each row.
        reading: how they are read.
        shares: number or share of the training images held out, see :func:`dataset_of`.
        **what: as there.

    Raises:
        DataError: as there.
    """
    held_out = shares if any(file.part == "train" for file in files) else {}
    return dataset_of(files, reading, shares=held_out, layout="table", **what)


def _moved(files: Sequence[Listed], part: str, share: int | float) -> list[Listed]:
    """The files, some of training moved to another part."""
    rows = [i for i, file in enumerate(files) if file.part == "train"]
    held = held_out(_labels([files[i] for i in rows]), len(rows), share, key=part)
    moved = {row for row, out in zip(rows, held.tolist(), strict=True) if out}
    return [replace(file, part=part) if i in moved else file for i, file in enumerate(files)]


def _labels(files: Sequence[Listed]) -> Tensor | None:
    """int64 or float32 (N,), uint8 (N, K) of several labels, None where the files have none."""
    labels: list[Any] = [file.label for file in files]
    if None in labels:
        return None
    kinds = {float: torch.float32, tuple: torch.uint8}
    return torch.tensor(labels, dtype=kinds.get(type(labels[0]), torch.int64))


def _split(images: Tensor, files: Sequence[Listed], part: str) -> Split:
    rows = [i for i, file in enumerate(files) if file.part == part]
    together = rows[-1] - rows[0] == len(rows) - 1
    own = images[rows[0] : rows[-1] + 1] if together else images[torch.tensor(rows)]
    return Split(own, _labels([files[i] for i in rows]))  # type: ignore[arg-type]


def _told(
    splits: Mapping[str, Split],
    own: set[str],
    root: Path,
    classes: Sequence[str],
    task: Regression | MultiLabel | None,
    places: Mapping[str, str],
) -> str:
    """What was found: the parts with their places and counts, and the classes."""
    said = []
    for part, split in splits.items():
        place = places.get(part, "") if part in own else "held out of training"
        without = "" if split.labelled else " without labels"
        said.append(f"{len(split):,} images{without} for {part}{f' ({place})' if place not in ('', part) else ''}")
    if isinstance(task, Regression):
        return f"{root}: {', '.join(said)}; numbers from {task.low:g} to {task.high:g} {task.unit}".rstrip()
    few = ", ".join(classes[:8]) + (" ..." if len(classes) > 8 else "")
    kind = "classes" if task is None else "labels, several an image"
    return f"{root}: {', '.join(said)}; {len(classes)} {kind}: {few}"


def listed_images(folder: Path, unread: Counter[str]) -> list[Path]:
    """The image files in and below a folder, sorted; other files are counted in ``unread`` by their ending."""
    there = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = [path for path in there if path.suffix.lower() in ENCODINGS]
    unread += Counter(path.suffix.lower() or path.name for path in there if path.suffix.lower() not in ENCODINGS)
    return paths
