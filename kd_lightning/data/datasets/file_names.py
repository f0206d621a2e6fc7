"""Images whose labels are part of their names: classes or numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.core.sides import Size
from kd_lightning.core.tasks import Regression
from kd_lightning.data.classes import part_of
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.decoding import Cache
from kd_lightning.data.datasets.image_files import ENCODINGS, Resize
from kd_lightning.data.datasets.listed import Reading
from kd_lightning.data.datasets.texts import labelled_by_text
from kd_lightning.data.table_rows import named
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store


def load(
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
        task: the range of the labels, where they are numbers; None for classes.
        classes: their names in the order of the labels; None for all that occur, in order.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out, where no folder is that part; 0 for none.
        test: likewise for the test.
        store: keeps decoded images; None decodes at each call.
        skip_bad: leave out files that cannot be decoded, and count them.
        resize: how an image of another shape is brought to ``size``, as for :func:`folder.load`.
        cache: where decoded images are, as for :func:`folder.load`.

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
    return labelled_by_text(taken, place.name, place, task, classes, reading, {"test": test, "val": val}, left)
