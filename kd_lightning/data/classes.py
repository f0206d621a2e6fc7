"""Classes of an image folder, from the names of its folders; fast enough for composing a config."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kd_lightning.errors import DataError

SPLITS = {"train": ("train", "training", "trn"), "val": ("val", "valid", "validation", "dev"),
          "test": ("test", "testing", "tst")}  # fmt: skip
"""Part -> usual names of its folder, in any case, with or without a ``set`` or ``_set`` behind."""
LIKELY = re.compile(r"(train|valid|val|test)[^a-z].*|(training|testing|validation).*", re.IGNORECASE)
"""Names that are rather those of a part than of a class."""


def part_of(name: str) -> str | None:
    """The part that a folder of this name holds, None for any other name."""
    bare = re.sub(r"[-_ ]?set$", "", name.lower())
    return next((part for part, names in SPLITS.items() if bare in names), None)


def split_folders(root: str | Path) -> dict[str, Path]:
    """Map ``train``, ``val``, ``test`` to their folders, of any usual name; without any, ``train`` is ``root`` itself.

    Raises:
        DataError: ``root`` is no folder, has only a ``val`` folder, or two for the same part.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder {root}: set data.root to the folder that holds {_EXPECTED}")
    places: dict[str, list[Path]] = {part: [] for part in SPLITS}
    for folder in sorted(root.iterdir()):
        if (part := part_of(folder.name)) is not None and folder.is_dir():
            places[part].append(folder)
    for part, folders in places.items():
        if len(folders) > 1:
            names = " and ".join(folder.name for folder in folders)
            raise DataError(f"{root} holds {names}, both for {part}: keep one of them, or rename the other")
    found = {part: folders[0] for part, folders in places.items() if folders}
    if list(found) == ["val"]:
        raise DataError(f"{root} holds a folder {found['val'].name}, but neither train nor test: expected {_EXPECTED}")
    return found or {"train": root}


def class_names(folder: Path) -> list[str]:
    """Sorted names of the class folders of one part, without hidden folders.

    Raises:
        DataError: there is no class folder; the message lists what is there.
    """
    with os.scandir(folder) as entries:
        visible = sorted((e.name, os.path.isdir(e.path)) for e in entries if not e.name.startswith("."))
    names = [name for name, is_folder in visible if is_folder]
    if not names:
        files = [name for name, _ in visible]
        few = ", ".join(files[:3]) + (" ..." if len(files) > 3 else "")
        held = f"{len(files)} file{'s' if len(files) > 1 else ''} ({few})" if files else "nothing"
        raise DataError(f"no class folders in {folder}: found {held}, expected {_EXPECTED}")
    return names


def folder_classes(root: str | Path) -> list[str]:
    """Class names of an image folder: those of ``train``, else of ``test``, else of ``root`` itself.

    Raises:
        DataError: there is no such folder, or no class folder in it.
    """
    return classes_of(split_folders(root))


def classes_of(parts: dict[str, Path]) -> list[str]:
    """Class names of the parts of a set: those of ``train``, else of ``test``.

    Raises:
        DataError: there are none or one, or they are rather names of parts.
    """
    folder = parts.get("train") or parts["test"]
    names = class_names(folder)
    if likely := [name for name in names if LIKELY.fullmatch(name)]:
        raise DataError(
            f"{folder} holds {', '.join(names[:5])}: is {likely[0]} a part of the set and no class? Call parts train, "
            "val and test"
        )
    if len(names) == 1:
        inner = folder / names[0]
        with os.scandir(inner) as entries:
            below = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        if len(below) > 1:
            raise DataError(
                f"{folder} holds one folder, {names[0]}, with {', '.join(below[:5])} in it: set data.root={inner}"
            )
        raise DataError(
            f"{folder} holds one class folder, {names[0]}: with one class there is nothing to tell apart. Expected "
            f"{_EXPECTED}"
        )
    return names


_EXPECTED = "train/<class>/* and, if you have them, val/<class>/* and test/<class>/*, or only <class>/*"
