"""Classes of an image folder, from the names of its folders; fast enough for composing a config."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kd_lightning.core import strangers
from kd_lightning.errors import DataError

SPLITS = {"train": ("train", "training", "trn"), "val": ("val", "valid", "validation", "dev"),
          "test": ("test", "testing", "tst")}  # fmt: skip
"""Part -> usual names of its folder, in any case, with or without a ``set`` or ``_set`` behind."""
LIKELY = re.compile(r"(train|valid|val|test)[^a-z].*|(training|testing|validation|trainval).*", re.IGNORECASE)
"""Names that are rather those of a part than of a class."""
ENDING = re.compile(r".*[^a-z](train|training|val|valid|validation|test|testing)", re.IGNORECASE)
"""Names that may be either: ``bullet_train``, ``images_train``; rather parts where two kinds of parts are named so."""


def part_of(name: str) -> str | None:
    """The part that a folder of this name holds, None for any other name."""
    bare = re.sub(r"[-_ ]?set$", "", name.lower())
    return next((part for part, names in SPLITS.items() if bare in names), None)


def split_folders(root: str | Path) -> dict[str, Path]:
    """Map ``train``, ``val``, ``test`` to their folders, of any usual name; without any, ``train`` is ``root`` itself.

    Raises:
        DataError: ``root`` is no folder, has only a ``val`` folder, two for the same part, or beside them one whose
            name is rather that of a part.
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
    if found and (like := _likely(beside(root))):
        raise DataError(f"{root} holds {', '.join(p.name for p in found.values())} and {like[0]}: which part is "
                        f"{like[0]}? Call parts train, val and test")  # fmt: skip
    return found or {"train": root}


def beside(root: str | Path) -> list[str]:
    """Names of the folders beside those of parts, which are not read."""
    folders = (path for path in Path(root).expanduser().iterdir() if path.is_dir())
    return sorted(f.name for f in folders if part_of(f.name) is None and not f.name.startswith((".", "__")))


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
    if likely := _likely(names):
        raise DataError(
            f"{folder} holds {', '.join(names[:5])}: is {likely[0]} a part of the set and no class? Call parts train, "
            "val and test"
        )
    if len(names) == 1:
        inner = folder / names[0]
        below = sorted(path.name for path in inner.iterdir() if path.is_dir() and not path.name.startswith("."))
        if len(below) > 1:
            raise DataError(
                f"{folder} holds one folder, {names[0]}, with {', '.join(below[:5])} in it: set data.root={inner}"
            )
        raise DataError(
            f"{folder} holds one class folder, {names[0]}: with one class there is nothing to tell apart. Expected "
            f"{_EXPECTED}"
        )
    return names


def _likely(names: list[str]) -> list[str]:
    """Those of the names that are rather those of parts."""
    ending = {name: part_of(match[1]) for name in names if (match := ENDING.fullmatch(name))}
    several = len(set(ending.values())) > 1
    return [name for name in names if LIKELY.fullmatch(name) or (several and name in ending)]


def alike_below(folder: Path, names: list[str]) -> list[str]:
    """The folders in the class folders if they are the same two or more in each: they may be the classes; else none."""
    below = [{path.name for path in (folder / name).iterdir() if path.is_dir()} for name in names]
    return sorted(below[0]) if len(below[0]) > 1 and all(each == below[0] for each in below) else []


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
