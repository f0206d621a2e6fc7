"""Images whose labels stand in a table, CSV or Parquet, or in their own names: classes or numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_lightning.core.sides import Size
from kd_lightning.core.tasks import Regression
from kd_lightning.data.classes import part_of
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.decoding import Cache
from kd_lightning.data.datasets.image_files import ENCODINGS, Resize
from kd_lightning.data.datasets.listed import Listed, Reading, dataset_of
from kd_lightning.data.table_rows import IMAGE, LABEL, PART, class_names_of, column_of, named, rows_of
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store


def load(
    *,
    file: str | Path,
    size: Size,
    root: str | Path | None = None,
    task: Regression | None = None,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    part_column: str | None = None,
    channels: int = 3,
    val: int | float = 0.1,
    test: int | float = 0.2,
    store: Store | None = None,
    skip_bad: bool = False,
    resize: Resize = "crop",
    cache: Cache = "memory",
) -> Dataset:
    """Load the images that a table names, with its labels.

    Args:
        file: .csv, .tsv or .parquet; each row is an image.
        size: height and width in pixels, or one number for both.
        root: folder that paths are relative to; None for that of the table.
        task: the range of the labels, where they are numbers; None for classes.
        classes: their names in the order of the labels; None for all that occur, in order.
        image_column: column of the paths; None finds it by its usual names, such as ``path`` or ``file``.
        label_column: column of the labels; likewise, ``label`` or ``class``.
        part_column: column that says train, val or test; None for ``part`` or ``split``, if there is one.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out, where the table has no such part; 0 for none.
        test: likewise for the test.
        store: keeps decoded images; None decodes at each call.
        skip_bad: leave out rows without a label and files that are not there or cannot be decoded, and count them.
        resize: how an image of another shape is brought to ``size``, as for :func:`folder.load`.
        cache: where decoded images are, as for :func:`folder.load`.

    Raises:
        DataError: a column, a file or a label is missing or means nothing; the row is named.
    """
    table, rows = Path(file).expanduser(), rows_of(file)
    image = column_of(rows, image_column, IMAGE, "image_column", table)
    label = column_of(rows, label_column, LABEL, "label_column", table)
    part = _part_column(rows, part_column, table)
    place = Path(root).expanduser() if root is not None else table.parent
    taken, left, skipped = [], Counter[str](), 0
    for number, row in enumerate(rows, 2):
        path, text = place / str(row[image] or ""), str("" if row[label] is None else row[label]).strip()
        wrong = "no label" if not text else "" if path.is_file() else f"there is no file {path}"
        if wrong and not skip_bad:
            advice = "" if wrong == "no label" else f" (paths are relative to {place}: data.root=DIR names another)"
            raise DataError(f"{table}, row {number}: {wrong}{advice}; data.skip_bad=true leaves such rows out")
        if wrong:
            skipped += 1
        elif path.suffix.lower() not in ENCODINGS:
            left[path.suffix.lower() or path.name] += 1
        else:
            taken.append((path, _part(row, part, table, number), text, f"{table}, row {number}"))
    found = _loaded(taken, table.stem, place, task, classes, Reading(size, channels, store, skip_bad, resize, cache),
                    {"test": test, "val": val}, left)  # fmt: skip
    return replace(found, skipped=found.skipped + skipped)


def load_named(
    *,
    root: str | Path,
    pattern: str,
    size: Size,
    task: Regression | None = None,
    classes: Sequence[str] | None = None,
    channels: int = 3,
    val: int | float = 0.1,
    test: int | float = 0.2,
    store: Store | None = None,
    skip_bad: bool = False,
    resize: Resize = "crop",
    cache: Cache = "memory",
) -> Dataset:
    """Load the images of a folder, whose labels are part of their names.

    Args:
        root: the folder, with those below it; a folder ``train``, ``val`` or ``test`` in it says the part.
        pattern: regular expression with a group ``label``, searched in a file's name: ``_(?P<label>\\d+)_``. Files
            that it does not match are left out and counted.
        size: height and width in pixels, or one number for both.
        task: as for :func:`load`, as are all others.
        classes: see there.
        channels: see there.
        val: see there.
        test: see there.
        store: see there.
        skip_bad: see there.
        resize: see there.
        cache: see there.

    Raises:
        DataError: no name matches, or a label means nothing.
    """
    place = Path(root).expanduser()
    pairs = named(place, pattern)
    images = [(path, text) for path, text in pairs if path.suffix.lower() in ENCODINGS]
    left = Counter(path.suffix.lower() or path.name for path, _ in pairs if path.suffix.lower() not in ENCODINGS)
    if not images:
        raise DataError(f"data.pattern={pattern} matches no image in {place}")
    taken = []
    for path, text in images:
        inside = path.relative_to(place).parts
        part = (part_of(inside[0]) if len(inside) > 1 else None) or "train"
        taken.append((path, part, text, str(path)))
    reading = Reading(size, channels, store, skip_bad, resize, cache)
    return _loaded(taken, place.name, place, task, classes, reading, {"test": test, "val": val}, left)


def _loaded(
    taken: Sequence[tuple[Path, str, str, str]],
    name: str,
    root: Path,
    task: Regression | None,
    classes: Sequence[str] | None,
    reading: Reading,
    shares: dict[str, int | float],
    unread: Counter[str],
) -> Dataset:
    """The data set of paths, their parts, the texts of their labels and what to call each in messages."""
    if not taken:
        raise DataError(f"{root}: no image is left to read")
    names = list(classes or ()) or class_names_of([text for _, _, text, _ in taken])
    if task is None and len(names) < 2:
        raise DataError(f"{root}: all images have the label {names[0]}: with one class there is nothing to tell apart")
    order = {label: number for number, label in enumerate(names)}
    listed = []
    for path, part, text, said in taken:
        label: Any = _number(text, said) if task is not None else order.get(text)
        if label is None:
            raise DataError(f"{said}: the label {text} is none of the {len(names)} classes {', '.join(names[:8])}")
        listed.append(Listed(path, part, label))
    if "train" not in {each.part for each in listed}:
        shares = {}
    return dataset_of(
        listed,
        reading,
        root=root,
        name=name,
        classes=() if task is not None else names,
        task=task,
        shares=shares,
        layout="table",
        unread=unread,
    )


def _number(text: str, said: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{said}: the label {text!r:.40} is no number; data.labels=classes reads names")
    return number


def _part_column(rows: Sequence[dict[str, Any]], wanted: str | None, table: Path) -> str | None:
    """The column of the parts; None where nobody named one and there is none of a usual name."""
    if wanted is not None:
        return column_of(rows, wanted, PART, "part_column", table)
    there = {str(name).lower().strip() for name in rows[0]}
    return column_of(rows, None, PART, "part_column", table) if there & set(PART) else None


def _part(row: dict[str, Any], column: str | None, table: Path, number: int) -> str:
    if column is None:
        return "train"
    if (part := part_of(str(row[column]).strip())) is None:
        raise DataError(f"{table}, row {number}: {column} says {row[column]!r:.40}, expected train, val or test")
    return part
