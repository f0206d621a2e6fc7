"""Images whose labels stand in a table, CSV or Parquet: classes, numbers, or several labels an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.sides import Size
from kd_lightning.core.tasks import Regression
from kd_lightning.data.classes import part_of
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.decoding import Cache
from kd_lightning.data.datasets.image_files import ENCODINGS, Resize
from kd_lightning.data.datasets.label_sets import labelled_by_set
from kd_lightning.data.datasets.listed import Reading
from kd_lightning.data.datasets.texts import labelled_by_text
from kd_lightning.data.label_sets import column_names, flags_in, names_in, set_names
from kd_lightning.data.table_rows import IMAGE, LABEL, PART, column_of, rows_of
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store


def load(
    *,
    file: str | Path,
    size: Size,
    root: str | Path | None = None,
    task: Regression | MultiLabel | None = None,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    separator: str = ";",
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
        task: the range of the labels, where they are numbers, or several labels; None for classes.
        classes: their names in the order of the labels; None for all that occur, in order.
        image_column: column of the paths; None finds it by its usual names, such as ``path`` or ``file``.
        label_column: column of the labels; likewise, ``label`` or ``class``. Of several labels it holds their names, or
            there is a column of 0 and 1 for each, and this is the list of them.
        separator: between the names of several labels.
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
    several = isinstance(task, MultiLabel)
    label: Any = (
        column_names(rows, label_column, table)
        if several
        else column_of(rows, cast(str | None, label_column), LABEL, "label_column", table)
    )
    part = _part_column(rows, part_column, table)
    place = Path(root).expanduser() if root is not None else table.parent
    taken, left, skipped = [], Counter[str](), 0
    for number, row in enumerate(rows, 2):
        path, said = place / str(row[image] or ""), f"{table}, row {number}"
        if not several:
            told: Any = str("" if row[label] is None else row[label]).strip()
        else:
            told = names_in(row[label], separator) if isinstance(label, str) else flags_in(row, label, said)
        wrong = "no label" if not told and not several else "" if path.is_file() else f"there is no file {path}"
        if wrong and not skip_bad:
            advice = "" if wrong == "no label" else f" (paths are relative to {place}: data.root=DIR names another)"
            raise DataError(f"{said}: {wrong}{advice}; data.skip_bad=true leaves such rows out")
        if wrong:
            skipped += 1
        elif path.suffix.lower() not in ENCODINGS:
            left[path.suffix.lower() or path.name] += 1
        else:
            taken.append((path, _part(row, part, table, number), told, said))
    reading = Reading(size, channels, store, skip_bad, resize, cache)
    shares = {"test": test, "val": val}
    if isinstance(task, MultiLabel):
        names = list(classes or set_names(file, label_column, separator))
        found = labelled_by_set(taken, names, table.stem, place, task, reading, shares, left)
        return replace(found, skipped=found.skipped + skipped)
    found = labelled_by_text(taken, table.stem, place, task, classes, reading, shares, left)
    return replace(found, skipped=found.skipped + skipped)


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
