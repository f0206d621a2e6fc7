"""ImageNet-100: a hundred of ImageNet's classes in one HDF5 file, as cGAN-KD's authors have it, or in class folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kd_lightning.core.sides import Size
from kd_lightning.data.dataset import Dataset, hold_out
from kd_lightning.data.datasets import folder, h5
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

FILE = "ImageNet_128x128_100Class.h5"
FOLDER = "imagenet100"


def load(
    *,
    root: str | Path,
    num_classes: int = 100,
    size: Size = 128,
    channels: int = 3,
    val: int | float = 0,
    test: int | float = 10000,
    store: Store | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Load the authors' file in ``root``, else ``root/imagenet100/{train,test}/<class>/*``; ``test`` may be missing.

    The authors test on 10,000 images drawn from ImageNet's training images. Without a folder ``test``, ``test`` images
    are held out of the training images too, always the same ones.

    Args:
        root: the folder that holds the file or the folder.
        num_classes: number of classes.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out; 0 for none.
        test: number or share of a folder's images for the test; not used with the file or a folder ``test``.
        store: keeps decoded images.
        skip_bad: leave out images that cannot be decoded, and count them.

    Raises:
        DataError: neither is there, or what ``h5.load`` and ``folder.load`` raise.
    """
    root = Path(root).expanduser()
    file, pictures = root / FILE, root / FOLDER
    if file.is_file():
        return h5.load(
            name="imagenet100",
            file=file,
            size=size,
            channels=channels,
            num_classes=num_classes,
            val=val,
            test="valid",
        )
    if not pictures.is_dir():
        raise DataError(
            f"ImageNet-100 is not under {root}: expected the file {FILE}, or the images in {FOLDER}/train/<class>/*. "
            "Put one of them there, or name another folder with data.root=DIR"
        )
    found = folder.load(
        root=pictures, name="imagenet100", size=size, channels=channels, val=0, store=store, skip_bad=skip_bad
    )
    train, test_part, val_part = found.train, found.test, found.val
    if train is not None and test_part is None:
        train, test_part = hold_out(train, test)
    if train is not None and val_part is None and val:
        train, val_part = hold_out(train, val)
    return replace(found, train=train, val=val_part, test=test_part)
