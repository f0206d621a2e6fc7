"""Classes of an image folder, from the names of its folders; fast enough for composing a config."""

from __future__ import annotations

import os
from pathlib import Path

from kd_lightning.core import strangers
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


def pixel_classes(file: str | Path) -> list[tuple[str, tuple[int, int, int] | None]]:
    """Names and colours of the classes of label maps, from a file.

    Each line is ``RED GREEN BLUE NAME`` or ``NAME``. The number of the line, from 0, is the number of the class in maps
    of numbers. Empty lines and those that begin with ``#`` do not count. A class called void, ignore or unlabelled is
    void.

    Raises:
        DataError: there is no such file, or it has no class, one twice, or colours on some lines only.
    """
    path = Path(file).expanduser()
    with strangers.reading(path, error=DataError, advice="set data.names to a file with one line for each class"):
        lines = [line.strip() for line in strangers.read_text(path, strangers.MOST_YAML).splitlines()]
    found = [_pixel_class(line) for line in lines if line and not line.startswith("#")]
    names, colours = [name for name, _ in found], [colour for _, colour in found if colour is not None]
    if len(names) < 2 or len(names) > 255:
        raise DataError(f"{path} names {len(names)} classes, expected 2 to 255, one on each line")
    for values in (names, colours):
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise DataError(f"{path}: {twice[0]} is there twice")
    if colours and len(colours) < len(names):
        raise DataError(f"{path}: {len(colours)} of {len(names)} classes have a colour, expected all or none")
    return found


def _pixel_class(line: str) -> tuple[str, tuple[int, int, int] | None]:
    words = line.replace(",", " ").split()
    if len(words) > 3 and all(word.isdecimal() and int(word) < 256 for word in words[:3]):
        return " ".join(words[3:]), (int(words[0]), int(words[1]), int(words[2]))
    return line, None


def is_void(name: str) -> bool:
    """Whether a class of label maps stands for pixels without one."""
    return name.lower() in ("void", "ignore", "unlabeled", "unlabelled")


def count_pixel_classes(file: str | Path) -> int:
    """Number of classes that a file names for label maps, without void; see :func:`pixel_classes`."""
    return sum(not is_void(name) for name, _ in pixel_classes(file))


_EXPECTED = "train/<class>/* and, if you have them, val/<class>/* and test/<class>/*, or only <class>/*"
