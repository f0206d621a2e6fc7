"""CamVid: street scenes with 11 classes, in the folders of the SegNet release.

Brostow, Fauqueur and Cipolla, *Semantic Object Classes in Video* (2009); the 367 / 101 / 233 images
and the 11 classes of Badrinarayanan, Kendall and Cipolla, *SegNet* (2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.scenes.label_maps import Classes, build, inside, numbered, paired
from kd_lightning.store.artifacts import Store

CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
VOID_NUMBER = 11


def load(
    *,
    task: Segmentation,
    root: str | Path,
    size: int | Sequence[int] = (360, 480),
    channels: int = 3,
    store: Store | None = None,
) -> Dataset:
    """Load ``root/camvid/{train,val,test}/*`` with the label maps of the same names in ``{train,val,test}annot/``.

    Maps have the classes 0 to 10, and 11 or 255 for void. The folder may also be called ``CamVid``, or be ``root``
    itself.

    Args:
        task: of 11 classes.
        root: the folder that holds it.
        size: height and width.
        channels: 1 (grey) or 3 (RGB).
        store: keeps decoded images.

    Raises:
        DataError: the folders are not there, or a file is wrong.
    """
    folder = inside(Path(root).expanduser(), ("camvid", "CamVid", ""), "train", "camvid")
    parts = {
        part: paired(folder / part, folder / f"{part}annot")
        for part in ("train", "val", "test")
        if (folder / part).is_dir()
    }
    meaning = Classes(CLASSES, numbered(CLASSES, void=(VOID_NUMBER, 255)), described="CamVid")
    return build("camvid", parts, meaning, task=task, size=size, channels=channels, root=folder, store=store)
