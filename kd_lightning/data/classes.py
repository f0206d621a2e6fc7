"""Classes of an image folder, from the names of its folders; fast enough for composing a config."""

from __future__ import annotations

import os
from pathlib import Path

from kd_lightning.errors import DataError

SPLITS = ("train", "val", "test")


def split_folders(root: str | Path) -> dict[str, Path]:
    """Map ``train``, ``val``, ``test`` to their folders; without any, ``train`` is ``root`` itself.

    Raises:
        DataError: ``root`` is no folder, or has only a ``val`` folder.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder {root}: set data.root to the folder that holds {_EXPECTED}")
    found = {name: root / name for name in SPLITS if (root / name).is_dir()}
    if list(found) == ["val"]:
        raise DataError(f"{root} holds a folder val, but neither train nor test: expected {_EXPECTED}")
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
    parts = split_folders(root)
    return class_names(parts.get("train") or parts["test"])


_EXPECTED = "train/<class>/* and, if you have them, val/<class>/* and test/<class>/*, or only <class>/*"
