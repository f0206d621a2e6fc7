"""Images in one folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kd_lightning.core.sides import Size
from kd_lightning.data.classes import alike_below, beside, class_names, classes_of, split_folders
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.decoding import Cache
from kd_lightning.data.datasets.image_files import ENCODINGS, USUAL, Resize, counted
from kd_lightning.data.datasets.listed import Listed, Reading, dataset_of
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store


def load(
    *,
    root: str | Path,
    name: str = "image_folder",
    size: Size,
    channels: int = 3,
    val: int | float = 0.1,
    store: Store | None = None,
    skip_bad: bool = False,
    classes: Sequence[str] | None = None,
    resize: Resize = "crop",
    cache: Cache = "memory",
) -> Dataset:
    """Load ``root/train/<class>/*`` and any ``val`` and ``test``, or only ``test``, or ``root/<class>/*``.

    Folders inside a class folder belong to its class.

    Args:
        root: the folder.
        name: of the set, in messages and tables.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out if there is no ``val`` folder; 0 for none.
        store: keeps decoded images; None decodes at each call.
        skip_bad: leave out files that cannot be decoded, and count them.
        classes: the class names in the order of their labels, needed where folders hold only some of them.
        resize: how an image of another shape is brought to ``size``: ``crop``, ``imagenet``, ``stretch`` or ``pad``.
        cache: where decoded images are: in ``memory``, on ``disk`` where they are read as needed, or ``none``.

    Raises:
        DataError: there is no class folder, one is empty or unknown, or a file cannot be decoded.
    """
    root = Path(root).expanduser()
    parts = split_folders(root)
    names = list(classes) if classes else classes_of(parts)
    unread: Counter[str] = Counter()
    files = [file for part, folder in parts.items() for file in _list(folder, part, names, unread)]
    found = dataset_of(
        files,
        Reading(size, channels, store, skip_bad, resize, cache),
        root=root,
        name=name,
        classes=names,
        shares={"val": val},
        layout="folders",
        unread=unread,
        places={part: "" if folder == root else folder.name for part, folder in parts.items()},
    )
    return replace(found, doubts=tuple(_doubts(root, parts, names)))


def _doubts(root: Path, parts: dict[str, Path], names: list[str]) -> Iterator[str]:
    """Yield a line that says which folders and images are left out, and where classes may lie one folder deeper."""
    if root not in parts.values() and (others := beside(root)):
        yield f"{root}: {', '.join(others[:5])} beside the parts of the set: not read"
    for folder in parts.values():
        if loose := [path for path in folder.iterdir() if path.suffix.lower() in ENCODINGS and path.is_file()]:
            yield f"{folder}: {len(loose):,} images outside the class folders were left out, such as {loose[0].name}"
    first = next(iter(parts.values()))
    taken = [name for name in names if (first / name).is_dir()]
    if same := alike_below(first, taken):
        yield (
            f"{first}: {', '.join(taken[:3])} ... were taken as the classes, and each holds the folders "
            f"{', '.join(same[:5])}: if those are the classes, bring them into train/<class>/* and test/<class>/*"
        )


def _list(folder: Path, part: str, names: list[str], unread: Counter[str]) -> list[Listed]:
    found = class_names(folder)
    if unknown := [name for name in found if name not in names]:
        raise DataError(
            f"class folder {folder / unknown[0]} is none of the {len(names)} classes of the training folder "
            f"({', '.join(names[:5])}{' ...' if len(names) > 5 else ''}): rename it, remove it, or add the "
            "class to the training folder"
        )
    files = []
    for name in found:
        there = sorted(
            Path(base) / file
            for base, _, inside in os.walk(folder / name)
            for file in inside
            if not file.startswith(".")
        )
        paths = [path for path in there if path.suffix.lower() in ENCODINGS]
        others = Counter(path.suffix.lower() or path.name for path in there if path.suffix.lower() not in ENCODINGS)
        unread += others
        if not paths:
            held = f", but {counted(others)}" if others else ""
            raise DataError(
                f"class folder {folder / name} holds no image that can be read ({USUAL} ...){held}: convert or add "
                "some, or remove the folder"
            )
        label = names.index(name)
        files += [Listed(path, part, label) for path in paths]
    return files
