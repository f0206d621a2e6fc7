"""Several labels an image in a table: names in one column, or 0 and 1 in several; fast enough to compose with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kd_lightning.data.table_rows import LABEL, class_names_of, column_of, rows_of
from kd_lightning.errors import DataError

FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
SEPARATORS = (";", "|", ",", " ")


def set_names(file: str | Path, columns: str | Sequence[str] | None, separator: str) -> list[str]:
    """The labels of a table: the columns themselves where there are several, else all that occur in the one.

    Args:
        file: the table.
        columns: name of the column, or of several with 0 and 1; None for a usual name.
        separator: between the labels in one column.

    Raises:
        DataError: there is no such column, or a label is none.
    """
    rows = rows_of(file)
    names = column_names(rows, columns, file)
    if not isinstance(names, str):
        return names
    found = [names_in(row[names], separator) for row in rows]
    _refuse_other_separator(found, separator, names, file)
    return class_names_of([name for each in found for name in each])


def column_names(rows: Sequence[dict[str, Any]], columns: Any, file: Any) -> str | list[str]:
    """The column of the labels, or the several that were named, all of which are there.

    Raises:
        DataError: one is not.
    """
    if columns is None or isinstance(columns, str):
        return column_of(rows, columns, (*LABEL, "tags"), "label_column", file)
    return [column_of(rows, str(column), LABEL, "label_column", file) for column in columns]


def names_in(value: Any, separator: str) -> list[str]:
    """The labels in a cell: a text with separators between them, or a list of Parquet's; none in an empty one."""
    parts: Iterable[Any] = value if isinstance(value, list | tuple) else str(value or "").split(separator)
    return [name for part in parts if (name := str(part).strip())]


def flags_in(row: dict[str, Any], columns: Sequence[str], said: str) -> list[str]:
    """The columns that hold 1.

    Args:
        row: of the table.
        columns: with 0 and 1.
        said: what to call the row in messages.

    Raises:
        DataError: a cell holds something else.
    """
    there = []
    for column in columns:
        flag = FLAGS.get(str(row[column]).strip().lower())
        if flag is None:
            raise DataError(f"{said}: {column} holds {row[column]!r:.40}, expected 0 or 1")
        if flag:
            there.append(column)
    return there


def _refuse_other_separator(found: Sequence[Sequence[str]], separator: str, column: str, file: Any) -> None:
    """Refuse names that are rather several with another separator between them."""
    if any(len(each) > 1 for each in found):
        return
    names = [name for each in found for name in each]
    for other in SEPARATORS:
        if other != separator and sum(other in name for name in names) * 4 > len(names):
            raise DataError(
                f"{file}: no cell of {column} holds data.separator={separator!r}, and many hold {other!r}, such as "
                f"{next(name for name in names if other in name)!r:.60}: set \"data.separator='{other}'\""
            )
