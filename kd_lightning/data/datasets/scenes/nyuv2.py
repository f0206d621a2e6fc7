"""NYU Depth v2: indoor scenes with 13 classes, in the folders of the nyuv2-python-toolkit.

Silberman, Hoiem, Kohli and Fergus, *Indoor Segmentation and Support Inference from RGBD Images* (ECCV 2012); 795
training and 654 test images, the 13 classes of Couprie et al., *Indoor Semantic Segmentation
using Depth Information* (2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.scenes.label_maps import Classes, build, inside, numbered, paired
from kd_lightning.store.artifacts import Store

CLASSES = [
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall",
    "window",
]  # fmt: skip


def load(
    *,
    task: Segmentation,
    root: str | Path,
    size: int | Sequence[int] = (480, 640),
    channels: int = 3,
    val: int | float = 0.1,
    store: Store | None = None,
) -> Dataset:
    """Load ``root/nyuv2/image/{train,test}/*`` with the label maps of the same names in ``seg13/{train,test}/``.

    Maps have the classes 1 to 13, and 0 for void, as those of nyuv2-meta-data, which DFAD's authors read the same way
    (255 is void, too). The folder may also be called ``NYUv2``, or be ``root``.

    Args:
        task: of 13 classes.
        root: the folder that holds it.
        size: height and width.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out; 0 for none.
        store: keeps decoded images.

    Raises:
        DataError: the folders are not there, or a file is wrong.
    """
    folder = inside(Path(root).expanduser(), ("nyuv2", "NYUv2", ""), "seg13", "nyuv2")
    parts = {
        part: paired(folder / "image" / part, folder / "seg13" / part)
        for part in ("train", "test")
        if (folder / "image" / part).is_dir()
    }
    meaning = Classes(CLASSES, numbered(CLASSES, first=1, void=(0, 255)), described="NYUv2")
    return build("nyuv2", parts, meaning, task=task, size=size, channels=channels, val=val, root=folder, store=store)
