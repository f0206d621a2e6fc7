"""Images with several labels each, of a table, as a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.listed import Listed, Reading, dataset_of_table
from kd_lightning.errors import DataError


def labelled_by_set(
    taken: Sequence[tuple[Path, str, Sequence[str], str]],
    names: Sequence[str],
    name: str,
    root: Path,
    task: MultiLabel,
    reading: Reading,
    shares: dict[str, int | float],
    unread: Counter[str],
) -> Dataset:
    """The data set of paths, their parts, their labels and what to call each in messages.

    Args:
        taken: one for each image, which may have no label.
        names: of all labels, in their order.
        name: of the set.
        root: folder that paths are relative to.
        task: what the labels mean.
        reading: how files are read.
        shares: of training images held out.
        unread: files of kinds that are not read.

    Raises:
        DataError: an image has a label that is none of them, or there is no image.
    """
    if not taken:
        raise DataError(f"{root}: no image is left to read")
    known, listed = set(names), []
    for path, part, there, said in taken:
        if strange := [each for each in there if each not in known]:
            raise DataError(f"{said}: the label {strange[0]} is none of the {len(names)}: {', '.join(names[:8])}")
        listed.append(Listed(path, part, tuple(int(each in there) for each in names)))
    return dataset_of_table(
        listed, reading, root=root, name=name, classes=names, task=task, shares=shares, unread=unread
    )
