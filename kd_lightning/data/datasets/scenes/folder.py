"""Images and label maps of your own, in folders, with the names of the classes in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_lightning.core.segmentation import VOID, Segmentation
from kd_lightning.data.classes import SPLITS, is_void, pixel_classes
from kd_lightning.data.dataset import Dataset, hold_out
from kd_lightning.data.datasets.scenes.label_maps import Classes, build, paired
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store


def load(
    *,
    task: Segmentation,
    root: str | Path,
    names: str | Path,
    size: int | Sequence[int],
    channels: int = 3,
    val: int | float = 0.1,
    test: int | float = 0.2,
    store: Store | None = None,
) -> Dataset:
    """Load ``root/{train,val,test}/{images,masks}``, or ``root/{images,masks}``; pairs have one name.

    Maps are PNGs of one number for each pixel, 255 for void, or of colours where ``names`` gives a palette.

    Args:
        task: of as many classes as ``names`` has.
        root: the folder.
        names: file of the classes, see :func:`~kd_lightning.data.classes.pixel_classes`.
        size: height and width, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out if there is no ``val`` folder; 0 for none.
        test: the same for ``test``, before ``val``.
        store: keeps decoded images.

    Raises:
        DataError: folders or files are missing, a file is wrong, or a label is no class.
    """
    root, named = Path(root).expanduser(), pixel_classes(names)
    folders = {part: root / part for part in SPLITS if (root / part / "images").is_dir()}
    if not folders and not (root / "images").is_dir():
        raise DataError(
            f"no folder {root / 'images'}: set data.root to the folder that holds images/ and masks/, or train/, "
            "val/ and test/ with both in each"
        )
    folders = folders or {"train": root}
    parts = {part: paired(folder / "images", folder / "masks") for part, folder in folders.items()}
    classes = [name for name, _ in named if not is_void(name)]
    labels = [VOID if is_void(name) else classes.index(name) for name, _ in named]
    colours = None
    if all(colour is not None for _, colour in named):
        colours = {colour: label for (_, colour), label in zip(named, labels, strict=True) if colour is not None}
    numbers = {VOID: VOID} | dict(enumerate(labels))
    meaning = Classes(classes, numbers, colours, described=str(names))
    found = build(
        "segmentation_folder", parts, meaning, task=task, size=size, channels=channels, root=root, store=store
    )
    for part, share in (("test", test), ("val", val)):
        if found.train is not None and part not in parts and share:
            train, held = hold_out(found.train, share)
            parts_held: dict[str, Any] = {"train": train, part: held}
            found = replace(found, **parts_held)
    return found
