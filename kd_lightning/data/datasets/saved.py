"""Folders that Hugging Face's ``datasets`` writes with ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_lightning.core.extras import install
from kd_lightning.core.sides import Size, sides
from kd_lightning.data.classes import part_of
from kd_lightning.data.dataset import Dataset, Split, hold_out
from kd_lightning.data.datasets.in_memory import split_of
from kd_lightning.data.table_rows import IMAGE, LABEL, saved_names
from kd_lightning.errors import DataError


def load(
    *,
    root: str | Path,
    size: Size,
    channels: int = 3,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    val: int | float = 0.1,
    test: int | float = 0.2,
) -> Dataset:
    """Load a saved set of pictures and classes; all of it is held in memory.

    Args:
        root: the folder that was saved.
        size: height and width in pixels, or one number for both; pictures are resized until they cover it and cropped.
        channels: 1 (grey) or 3 (RGB).
        classes: their names in the order of the labels; None for those that the folder tells.
        image_column: of the pictures; None finds it by its usual names.
        label_column: of the classes; likewise.
        val: number or share of training images held out, where the folder has no such part; 0 for none.
        test: likewise for the test.

    Raises:
        DataError: the package or the folder is missing, or its columns are no pictures and classes.
    """
    place = Path(root).expanduser()
    names = list(classes or saved_names(place))
    try:
        from datasets import Dataset as Table
        from datasets import load_from_disk
    except ImportError as error:
        raise DataError(f"saved sets of Hugging Face need its package: {install('datasets')}") from error
    try:
        found: Any = load_from_disk(str(place))
    except Exception as error:  # many kinds
        raise DataError(f"{place} cannot be read: {error}; expected a folder that save_to_disk wrote") from error
    splits: dict[str, Split] = {}
    image = (channels, *sides(size))
    for key, content in {"train": found}.items() if isinstance(found, Table) else found.items():
        if (part := part_of(str(key))) is None or part in splits:
            raise DataError(f"{place} holds a part {key}: expected train, validation or test, each once")
        renamed = {image_column: IMAGE[0], label_column: LABEL[0]}
        content = content.rename_columns({old: new for old, new in renamed.items() if old and old != new})
        splits[part] = split_of(content, image, len(names), what=f"{place}, {key}")
        if not splits[part].labelled:
            raise DataError(f"{place}, {key}: no column is called {', '.join(LABEL[:4])}: set data.label_column=NAME")
    for part, share in (("test", test), ("val", val)):
        if share and part not in splits and "train" in splits:
            splits["train"], splits[part] = hold_out(splits["train"], share)
    counts = ", ".join(f"{len(split):,} images for {part}" for part, split in splits.items())
    return Dataset(
        name=place.name,
        classes=names,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        layout="saved",
        encoding="raw",
        found=f"{place}: {counts}; {len(names)} classes: {', '.join(names[:8])}",
    )
