"""Cityscapes: streets of 50 cities with 19 classes, in the layout of its packages leftImg8bit and gtFine.

Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding* (CVPR 2016). Its own test labels are not
public, so the 500 images of ``val`` are the test, and some of the 2,975 of ``train`` are held out for validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd_lightning.core.segmentation import VOID, Segmentation
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.scenes.label_maps import Classes, Pair, build, inside
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

NUMBERS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""The evaluated classes, and their numbers in ``*_labelIds.png``; all other numbers are void."""
LAST = 33


def load(
    *,
    task: Segmentation,
    root: str | Path,
    size: int | Sequence[int] = (512, 1024),
    channels: int = 3,
    val: int | float = 0.1,
    store: Store | None = None,
) -> Dataset:
    """Load ``leftImg8bit/{train,val}/CITY/*`` with ``gtFine/{train,val}/CITY/*_gtFine_labelIds.png``.

    Both are in ``root/cityscapes``, or in ``root`` itself.

    Args:
        task: of 19 classes.
        root: the folder that holds it.
        size: height and width.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out; 0 for none.
        store: keeps decoded images.

    Raises:
        DataError: the folders are not there, or a file is wrong.
    """
    folder = inside(Path(root).expanduser(), ("cityscapes", ""), "gtFine", "cityscapes")
    parts = {part: _pairs(folder, own) for part, own in (("train", "train"), ("test", "val"))}
    numbers = dict.fromkeys((*range(LAST + 1), 255), VOID) | {n: i for i, n in enumerate(NUMBERS.values())}
    meaning = Classes(list(NUMBERS), numbers, described="Cityscapes (labelIds)")
    return build(
        "cityscapes", parts, meaning, task=task, size=size, channels=channels, val=val, root=folder, store=store
    )


def _pairs(folder: Path, part: str) -> list[Pair]:
    images = sorted((folder / "leftImg8bit" / part).glob("*/*_leftImg8bit.png"))
    if not images:
        raise DataError(f"no image {folder / 'leftImg8bit' / part}/CITY/*_leftImg8bit.png: put them there")

    def mask(image: Path) -> Path:
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        return folder / "gtFine" / part / image.parent.name / name

    return [Pair(image, mask(image)) for image in images]
