"""Data sets in one HDF5 file: ``images_train`` (N,C,H,W), ``labels_train``, and the same for the other parts."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_lightning.core import strangers
from kd_lightning.core.extras import install
from kd_lightning.core.sides import Size, sides
from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset, Split, fit_to, hold_out
from kd_lightning.errors import DataError

PACKED, SLACK = 100, 64_000_000
"""An array may have up to ``PACKED`` times the bytes of its compressed file, plus ``SLACK`` bytes."""
ROWS = 1024
"""Images read at a time: a file may be larger than memory while its resized images fit."""


def load(
    *,
    name: str,
    file: str | Path,
    size: Size,
    channels: int,
    task: Regression | None = None,
    num_classes: int | None = None,
    val: int | float = 0,
    test: str = "test",
) -> Dataset:
    """Load a file in the layout of cGAN-KD's authors.

    Labels may be integers or floats of any width and of shape (N,) or (N,1); images are 0 to 255.

    Args:
        name: what messages and tables call the set.
        file: the file.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        task: the meaning of the labels; None for classes 0, 1, ...
        num_classes: number of classes, where there is no task.
        val: number or share of training images held out; 0 for none.
        test: the part that is the test set, ``test`` or ``valid``.

    Raises:
        DataError: h5py, the file or a key is missing, or a key holds something else.
    """
    with opened(Path(file).expanduser()) as content:
        parts = {part: read_part(content, part, size=size, channels=channels) for part in ("train", test)}
    if task is None:
        parts = {part: Split(split.images, _classes(name, part, split.labels)) for part, split in parts.items()}
    train, held = hold_out(parts["train"], val) if val else (parts["train"], None)
    return Dataset(
        name=name,
        classes=[] if task else [str(i) for i in range(num_classes or 0)],
        train=train,
        val=held,
        test=parts[test],
        layout="h5",
        encoding="raw",
        task=task,  # type: ignore[arg-type]  # None: classes
    )


def opened(file: Path) -> Any:
    """Open the file for reading; the caller closes it.

    Raises:
        DataError: h5py or the file is missing, or it is no HDF5 file.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"sets in .h5 files need h5py: {install('h5')}") from error
    if not os.path.lexists(file):
        raise DataError(f"there is no file {file}: put it there, or name another folder with data.root=DIR")
    with strangers.reading(file, error=DataError, said=f"{file} is truncated, or no HDF5 file at all"):
        return h5py.File(file, "r")


def read_part(content: Any, part: str, *, size: Size, channels: int) -> Split:
    """One part of an open file: images uint8 (N,channels,H,W), labels float32 (N,) as stored.

    Raises:
        DataError: a key is missing or does not hold the expected numbers.
    """
    file = Path(content.filename)
    keys = [f"images_{part}", f"labels_{part}"]
    with strangers.reading(file, error=DataError):
        for key in keys:
            if key not in content and content.get(key, getlink=True) is None:
                few = ", ".join(list(content)[:10])
                raise DataError(f"{file} has no {key}: found {few}, expected {' and '.join(keys)}")
            if odd := _odd_node(content, key, file.stat().st_size):
                raise DataError(f"{file}: {key} {odd}")
        return _read_part(file, content, keys, size=size, channels=channels)


def _odd_node(content: Any, key: str, stored: int) -> str:
    """Why a key's content is no array of numbers inside this file; empty if it is one."""
    import h5py

    if not isinstance(content.get(key, getlink=True), h5py.HardLink):
        return "is a link, expected the numbers themselves: such a link may lead into other files"
    node = content[key]
    if not isinstance(node, h5py.Dataset):
        return f"is a {type(node).__name__.lower()}, expected numbers"
    if node.external or node.is_virtual:
        return "keeps its numbers in other files, expected them in this one"
    if node.dtype.kind not in "iuf" or node.shape is None or not all(node.shape):
        return f"is {node.dtype} {node.shape}, expected numbers and at least one of them"
    chunk = math.prod(node.chunks or ()) * node.dtype.itemsize
    if max(node.nbytes, chunk) > SLACK + PACKED * stored:
        return f"declares {max(node.nbytes, chunk):,} bytes in a file of {stored:,}: it is truncated, or no such file"
    return ""


def _read_part(file: Path, content: Any, keys: Sequence[str], *, size: Size, channels: int) -> Split:
    pixels, labels = content[keys[0]], content[keys[1]]
    shape = tuple(pixels.shape)
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise DataError(
            f"{file}: {keys[0]} is {pixels.dtype} {shape}, expected numbers from 0 to 255 as (N,C,H,W), with 1 or 3 "
            "channels"
        )
    tall, wide = sides(size)
    if shape[2] * wide != shape[3] * tall:
        raise DataError(
            f"{file}: images are {shape[2]}x{shape[3]}, which {tall}x{wide} would distort: set "
            f"data.size=[{shape[2]},{shape[3]}]"
        )
    if labels.size != len(pixels):
        raise DataError(f"{file}: {keys[1]} is {labels.dtype} {labels.shape}, expected numbers ({len(pixels)},)")
    labels = np.asarray(labels)
    if not np.isfinite(labels).all():
        raise DataError(f"{file}: {keys[1]} holds NaN or infinity, expected numbers")
    images = torch.empty(len(pixels), channels, tall, wide, dtype=torch.uint8)
    largest = 0.0
    for start in range(0, len(pixels), ROWS):
        rows = pixels[start : start + ROWS]
        lowest, highest = float(rows.min()), float(rows.max())
        if not (lowest >= 0 and highest <= 255):  # also true for NaN
            raise DataError(f"{file}: {keys[0]} holds {lowest:g} to {highest:g}, expected 0 to 255")
        largest = max(largest, highest)
        images[start : start + ROWS] = fit_to(
            torch.from_numpy(np.rint(rows).astype(np.uint8)), size=size, channels=channels
        )
    if largest <= 1:
        raise DataError(f"{file}: {keys[0]} holds nothing above {largest:g}, expected 0 to 255: multiply it by 255")
    return Split(images, torch.from_numpy(labels.reshape(-1).astype(np.float32)))


def _classes(name: str, part: str, labels: Tensor) -> Tensor:
    if (labels != labels.round()).any():
        raise DataError(f"{name}/{part}: label {float(labels[labels != labels.round()][0]):g} is no class")
    return labels.long()
