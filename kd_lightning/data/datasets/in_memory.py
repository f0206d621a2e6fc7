"""Images handed over in Python: arrays, tensors, torch's data sets and loaders, with labels or without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.data.dataset import Split, check_labels
from kd_lightning.data.datasets.image_files import pixels_of
from kd_lightning.data.table_rows import IMAGE, LABEL
from kd_lightning.errors import UserError

SLACK = 1e-3
"""How far outside [0, 1] rounding may bring images."""


def split_of(given: Any, image: tuple[int, int, int], num_classes: int, *, what: str, several: bool = False) -> Split:
    """Images uint8 (N,C,H,W) and labels, int64 (N,) or uint8 (N,K), or None, of what somebody has in memory.

    Args:
        given: images, or a pair of images and labels: arrays or tensors, uint8 or floats in [0, 1], (N,C,H,W),
            (N,H,W,C) or (N,H,W); or a ``torch.utils.data.Dataset`` or ``DataLoader``, whose items are an image, a pair
            or a mapping of them. Images may be Pillow's, too; those are resized.
        image: (C,H,W) that is expected.
        num_classes: K; labels are 0 to K - 1.
        what: name of the argument, for messages.
        several: whether an image has several labels, (N,K) of 0 and 1.

    Raises:
        UserError: no image, another shape or range, or labels that are no classes.
    """
    if isinstance(given, Tensor | np.ndarray):
        images, labels = _pixels(given, image, what), None
    elif isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(g, Tensor | np.ndarray) for g in given):
        images, labels = _pixels(given[0], image, what), _labels(given[1], what, several)
    elif isinstance(given, Iterable) or hasattr(given, "__getitem__"):
        images, labels = _collected(given, image, what, several)
    else:
        raise UserError(
            f"{what}: expected arrays or tensors of images, a torch Dataset or DataLoader, got {type(given).__name__}"
        )
    if labels is not None and len(labels) != len(images):
        raise UserError(f"{what}: {len(images)} images, but labels {tuple(labels.shape)}: expected one for each image")
    if labels is not None and several:
        MultiLabel(num_classes).check_labels(what, labels)
        labels = labels.to(torch.uint8)
    elif labels is not None:
        check_labels(what, labels, num_classes)
    return Split(images, labels)  # type: ignore[arg-type]


def _collected(given: Any, image: tuple[int, int, int], what: str, several: bool) -> tuple[Tensor, Tensor | None]:
    """The images and labels of a data set's items, or of a loader's batches."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    batches = isinstance(given, DataLoader) and given.batch_size is not None
    for number, item in enumerate(_items(given)):
        x, y = _parts(item, what)
        if isinstance(x, Image.Image):
            x = pixels_of(x, size=image[1:], channels=image[0])
        if not isinstance(x, Tensor | np.ndarray):
            raise UserError(
                f"{what}: item {number} has a {type(x).__name__} as its image, expected a tensor or picture"
            )
        images.append(_pixels(x if batches else x[None], image, what))
        if y is not None:
            labels.append(_labels(y if batches else np.asarray(y)[None], what, several))
    if not images:
        raise UserError(f"{what}: it holds no image")
    if labels and len(labels) < len(images):
        raise UserError(f"{what}: {len(labels)} of {len(images)} items have a label: give all of them one, or none")
    return torch.cat(images), torch.cat(labels) if labels else None


def _items(given: Any) -> Iterator[Any]:
    if isinstance(given, DataLoader | IterableDataset) or not hasattr(given, "__len__"):
        yield from given
    else:
        for i in range(len(given)):  # torch's data sets need not end an iteration
            yield given[i]


def _parts(item: Any, what: str) -> tuple[Any, Any]:
    """The image and the label, or None, of an item."""
    if isinstance(item, Mapping):
        found = [next((item[key] for key in usual if key in item), None) for usual in (IMAGE, LABEL)]
        if found[0] is None:
            there = ", ".join(map(str, list(item)[:8]))
            raise UserError(f"{what}: its items have {there}, and no image: call it {IMAGE[0]}, its class {LABEL[0]}")
        return found[0], found[1]
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _pixels(given: Tensor | np.ndarray, image: tuple[int, int, int], what: str) -> Tensor:
    x = torch.as_tensor(given).detach().cpu()
    if x.dim() == 3 and image[0] == 1:
        x = x[:, None]
    if x.dim() == 4 and tuple(x.shape[1:]) == (*image[1:], image[0]):
        x = x.permute(0, 3, 1, 2)
    if x.dim() != 4 or tuple(x.shape[1:]) != tuple(image):
        raise UserError(
            f"{what}: images are {tuple(x.shape)}, expected (N, {', '.join(map(str, image))}), as image says"
        )
    if x.dtype == torch.uint8:
        return x.contiguous()
    if not x.is_floating_point():
        raise UserError(f"{what}: images are {_kind(x)}, expected uint8, or floats in [0, 1]")
    if x.numel():
        low, high = (float(v) for v in x.aminmax())
        if not (low >= -SLACK and high <= 1 + SLACK):  # also true for NaN
            raise UserError(
                f"{what}: images from {low:.3g} to {high:.3g}, expected uint8, or floats in [0, 1] as they are before "
                "any normalisation; mean and std belong into the call"
            )
    return x.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous()


def _labels(given: Any, what: str, several: bool) -> Tensor:
    y = torch.as_tensor(given).detach().cpu()
    if several:
        return y
    if y.dim() == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all()):
        raise UserError(
            f"{what}: labels are {tuple(y.shape)} of 0 and 1: labels='several' takes any number of them for an image, "
            "y.argmax(1) makes classes of one each"
        )
    if y.is_floating_point() or y.dtype == torch.bool or y.dim() > 2 or (y.dim() == 2 and y.shape[1] != 1):
        raise UserError(f"{what}: labels are {_kind(y)} {tuple(y.shape)}, expected whole numbers (N,), one class each")
    return y.reshape(-1).long()


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
