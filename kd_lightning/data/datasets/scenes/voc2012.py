"""PASCAL VOC 2012: photographs with 20 kinds of things and a background, in the layout of its devkit.

Everingham et al., *The PASCAL Visual Object Classes Challenge* (IJCV 2010). Its own test labels are not public, so
the 1,449 images of ``val`` are the test, as everywhere, and some of the 1,464 of ``train`` are held out for validation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.core import strangers
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.scenes.label_maps import Classes, Pair, build, inside, numbered
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
]  # fmt: skip


def load(
    *,
    task: Segmentation,
    root: str | Path,
    size: int | Sequence[int] = 512,
    channels: int = 3,
    val: int | float = 0.1,
    store: Store | None = None,
) -> Dataset:
    """Load the images that ``ImageSets/Segmentation/{train,val}.txt`` list in ``root/VOCdevkit/VOC2012``.

    Images are ``JPEGImages/*.jpg``, maps ``SegmentationClass/*.png`` with the classes 0 to 20, and 255 for void. The
    folder may also be ``root/VOC2012``, or ``root`` itself.

    Args:
        task: of 21 classes.
        root: the folder that holds it.
        size: height and width, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out; 0 for none.
        store: keeps decoded images.

    Raises:
        DataError: the folders or lists are not there, or a file is wrong.
    """
    homes = ("VOCdevkit/VOC2012", "VOC2012", "")
    folder = inside(Path(root).expanduser(), homes, "SegmentationClass", "voc2012")
    lists = folder / "ImageSets" / "Segmentation"
    parts = {part: _pairs(folder, lists / f"{own}.txt") for part, own in (("train", "train"), ("test", "val"))}
    meaning = Classes(CLASSES, numbered(CLASSES), described="VOC 2012")
    return build("voc2012", parts, meaning, task=task, size=size, channels=channels, val=val, root=folder, store=store)


def _pairs(folder: Path, listed: Path) -> list[Pair]:
    with strangers.reading(listed, error=DataError):
        names = strangers.read_text(listed).split()
    if wrong := [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]:
        raise DataError(f"{listed}: {wrong[0]!r:.60} is no name of an image")
    return [Pair(folder / "JPEGImages" / f"{n}.jpg", folder / "SegmentationClass" / f"{n}.png") for n in names]
