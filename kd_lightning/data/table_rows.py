"""Rows of a table of images, and labels in file names; fast enough for composing a config."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kd_lightning.core import strangers
from kd_lightning.core.extras import install
from kd_lightning.errors import DataError

IMAGE = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "img", "image_id", "id")
LABEL = ("label", "labels", "class", "target", "category", "y", "value")
PART = ("part", "split", "set", "subset")
PARQUET = (".parquet", ".pq")


def rows_of(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a table by column: CSV or TSV with a first line of names, or Parquet.

    Raises:
        DataError: it cannot be read, has no rows, or Parquet's package is missing.
    """
    path = Path(file).expanduser()
    if not path.exists():
        raise DataError(f"there is no file {path}: set data.file to a table of paths and labels, .csv or .parquet")
    stat = path.stat()
    return _rows(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=4)
def _rows(path: Path, seen: tuple[int, int]) -> list[dict[str, Any]]:
    if path.suffix.lower() in PARQUET:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise DataError(f"{path}: Parquet needs pyarrow: {install('parquet')}") from error
        with strangers.reading(path, error=DataError):
            rows = parquet.ParquetFile(path).read().to_pylist()
    else:
        with strangers.reading(path, error=DataError, advice="expected a CSV file with a first line of column names"):
            text = strangers.read_text(path, strangers.MOST_TABLE).lstrip("\ufeff")
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    if not rows:
        raise DataError(f"{path} has no rows: expected a first line of column names, then one row for each image")
    return rows


def column_of(rows: Sequence[dict[str, Any]], wanted: str | None, usual: Sequence[str], key: str, file: Any) -> str:
    """The column of that name, or the first with a usual one.

    Args:
        rows: of the table.
        wanted: its name; None chooses among ``usual``.
        usual: names in lower case.
        key: the setting of ``data`` that names it, for the message.
        file: the table, for the message.

    Raises:
        DataError: there is none; lists the columns that there are.
    """
    there = [str(name) for name in rows[0] if name is not None]
    if wanted is not None and wanted in there:
        return wanted
    found = [name for name in there for word in usual if name.lower().strip() == word] if wanted is None else []
    if not found:
        said = f"no column {wanted}" if wanted is not None else f"none of the columns is called {', '.join(usual[:5])}"
        raise DataError(f"{file}: {said}; there are {', '.join(there[:12])}: set data.{key}=NAME")
    return min(found, key=lambda name: usual.index(name.lower().strip()))


def named(root: str | Path, pattern: str) -> list[tuple[Path, str]]:
    """The files in and below a folder whose name a pattern matches, with the text of its group ``label``.

    Raises:
        DataError: the pattern is none, or matches no file.
    """
    folder = Path(root).expanduser()
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.pattern={pattern}: {error}; expected a regular expression") from error
    if "label" not in expression.groupindex:
        raise DataError(f"data.pattern={pattern} has no group called label, such as (?P<label>\\d+)")
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: set data.root to the folder of the images")
    there = sorted(Path(top) / name for top, _, inside in os.walk(folder) for name in inside if name[:1] != ".")
    found = [(path, match["label"]) for path in there if (match := expression.search(path.name))]
    if not found:
        few = ", ".join(path.name for path in there[:3]) or "no file"
        raise DataError(f"data.pattern={pattern} matches no file in {folder}, which holds {few}")
    return found


def class_names_of(labels: Sequence[Any]) -> list[str]:
    """The different labels as text, in order: of numbers where all are whole numbers, else of letters."""
    names = {str(label).strip() for label in labels}
    whole = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=int) if whole else sorted(names)


def label_names(file: str | Path, column: str | None) -> list[str]:
    """The classes of a table, from its column of labels."""
    rows = rows_of(file)
    name = column_of(rows, column, LABEL, "label_column", file)
    return class_names_of([row[name] for row in rows])


def pattern_names(root: str | Path, pattern: str) -> list[str]:
    """The classes in the names of files; see :func:`named`."""
    return class_names_of([label for _, label in named(root, pattern)])


def saved_names(root: str | Path) -> list[str]:
    """The classes that a folder of Hugging Face's ``save_to_disk`` tells.

    Raises:
        DataError: it is no such folder, or does not tell them.
    """
    folder = Path(root).expanduser()
    files = [folder / "dataset_info.json", *sorted(folder.glob("*/dataset_info.json"))]
    if not (there := [file for file in files if file.is_file()]):
        raise DataError(f"{folder} holds no dataset_info.json: expected a folder that save_to_disk wrote")
    told = strangers.read_json(there[0], error=DataError)
    features = told.get("features") if isinstance(told, dict) else None
    for feature in (features or {}).values():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            return [str(name) for name in feature["names"]]
    raise DataError(f"{there[0]} names no classes: set data.classes=[NAME,...] in the order of the labels")
