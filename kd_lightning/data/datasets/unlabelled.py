"""Images without labels, for a teacher to answer: of a folder, a pattern of paths, or a list of them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kd_lightning.core import strangers
from kd_lightning.core.sides import Size
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets import folder
from kd_lightning.data.datasets.decoding import Cache
from kd_lightning.data.datasets.image_files import ENCODINGS, USUAL, Resize, counted
from kd_lightning.data.datasets.listed import Listed, Reading, dataset_of, listed_images
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

LISTS = (".txt", ".lst", ".list")


def load(
    *,
    files: str | Path,
    classes: Sequence[str] | int,
    size: Size,
    channels: int = 3,
    test: int | float | str = 0.1,
    store: Store | None = None,
    skip_bad: bool = False,
    resize: Resize = "crop",
    cache: Cache = "memory",
) -> Dataset:
    """Load images whose classes only the teacher knows.

    Args:
        files: a folder, all images in and below it; a pattern such as ``photos/**/*.jpg``; or a text file with one path
            on each line, relative to its own folder.
        classes: names of the teacher's classes in the order of its outputs, or their number.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        test: number or share of the images on which agreement with the teacher is measured, 0 for none; or a folder
            with a folder for each class, on which accuracy is measured.
        store: keeps decoded images; None decodes at each call.
        skip_bad: leave out files that cannot be decoded, and count them.
        resize: how an image of another shape is brought to ``size``, as for :func:`folder.load`.
        cache: where decoded images are, as for :func:`folder.load`.

    Raises:
        DataError: no image, or a file cannot be decoded.
    """
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
    unread: Counter[str] = Counter()
    root, paths = found_files(files, unread)
    if not paths:
        held = f", but {counted(unread)}" if unread else ""
        raise DataError(f"data.files={files}: no image that can be read ({USUAL} ...){held}")
    dataset = dataset_of(
        [Listed(path, "train") for path in paths],
        Reading(size, channels, store, skip_bad, resize, cache),
        root=root,
        name="unlabelled_images",
        classes=names,
        shares={} if isinstance(test, str) else {"test": test},
        layout="files",
        unread=unread,
    )
    if not isinstance(test, str):
        return dataset
    how = {"size": size, "channels": channels, "store": store, "skip_bad": skip_bad, "resize": resize, "cache": cache}
    judged = folder.load(root=test, val=0, **how)  # type: ignore[arg-type]
    if not isinstance(classes, int) and (lacking := [name for name in judged.classes if name not in names]):
        raise DataError(f"data.test={test} holds a class {lacking[0]}, none of the teacher's: {', '.join(names[:8])}")
    if isinstance(classes, int) and len(judged.classes) != classes:
        raise DataError(
            f"data.test={test} has {len(judged.classes)} classes, data.num_classes={classes}: name them in "
            "the order of the teacher's outputs with data.classes=[...]"
        )
    if not isinstance(classes, int):  # numbered as the teacher's outputs
        judged = folder.load(root=test, val=0, classes=names, **how)  # type: ignore[arg-type]
    told = f"{dataset.found}; {judged.found}"
    return replace(dataset, test=judged.test or judged.train, classes=judged.classes, found=told)


def found_files(files: str | Path, unread: Counter[str]) -> tuple[Path, list[Path]]:
    """The image files that a setting names, and a folder that holds them.

    Args:
        files: a folder, a pattern or a list, as for :func:`load`.
        unread: other files are counted there, by ending.

    Raises:
        DataError: there is nothing of that name, or a path of a list is no file.
    """
    where = Path(files).expanduser()
    if where.is_dir():
        return where, listed_images(where, unread)
    if where.suffix.lower() in LISTS and where.exists():
        with strangers.reading(where, error=DataError):
            lines = strangers.read_text(where, strangers.MOST_TABLE).splitlines()
        paths = [where.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if missing := [path for path in paths if not path.is_file()]:
            raise DataError(f"{where}: there is no file {missing[0]}; {len(missing)} of {len(paths)} are not there")
        return where.parent, _images(paths, unread)
    there = [Path(path) for path in sorted(glob.glob(str(where), recursive=True)) if os.path.isfile(path)]
    if not there:
        raise DataError(
            f"data.files={files}: there is no such folder, list or file; expected a folder, a pattern such as "
            "'photos/**/*.jpg' or a text file of paths"
        )
    return Path(os.path.commonpath([path.parent for path in there])), _images(there, unread)


def _images(paths: Sequence[Path], unread: Counter[str]) -> list[Path]:
    images = [path for path in paths if path.suffix.lower() in ENCODINGS]
    unread += Counter(path.suffix.lower() or path.name for path in paths if path.suffix.lower() not in ENCODINGS)
    return images
