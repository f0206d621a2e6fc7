"""Labels that are texts, of a table or of file names, as classes or numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.listed import Listed, Reading, dataset_of_table
from kd_lightning.data.table_rows import class_names_of
from kd_lightning.errors import DataError


def labelled_by_text(
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
    told = () if task is not None else names
    return dataset_of_table(
        listed, reading, root=root, name=name, classes=told, task=task, shares=shares, unread=unread
    )


def _number(text: str, said: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{said}: the label {text!r:.40} is no number; data.labels=classes reads names")
    return number
