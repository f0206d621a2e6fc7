"""Which cues a classifier uses: shape or texture, object or background.

**Shape bias** (Geirhos et al., ICLR 2019): of the images whose shape is of one category and whose texture is of
another, and which are classified as one of the two, the share classified by shape. **Background gap** (Xiao et al.,
ICLR 2021): the accuracy on objects before other images' backgrounds of their own class, minus that before backgrounds
of any class. Both as in CGN (Sauer and Geiger, ICLR 2021): for each head, and for ``Heads.shape_texture``.

JSON files that you provide map ImageNet's classes to categories: :func:`read_categories`, :func:`read_table`. Images
for the latter are normalised with their own mean (0.4717, 0.4499, 0.3837) and deviation (0.2600, 0.2516, 0.2575).

Deviations (paper / CGN's code / here):
    * Accuracy: - / divided by batches times batch size, even if the last batch is smaller / divided by the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_lightning.core.strangers import read_json
from kd_lightning.errors import DataError

CLASSES = 1000
"""Number of ImageNet's classes."""
NINE, MAPPED = 9, 370
"""Number of categories of ImageNet-9, and of ImageNet's classes that are in one."""


class ShapeBias(NamedTuple):
    """``bias``: by_shape / (by_shape + by_texture), NaN where both are 0; ``images``: those with two different cues."""

    bias: float
    by_shape: int
    by_texture: int
    images: int


class BackgroundGap(NamedTuple):
    """``gap``: mixed_same - mixed_rand, accuracies as fractions."""

    gap: float
    mixed_same: float
    mixed_rand: float


def shape_bias(logits: Tensor, shape: Tensor, texture: Tensor, *, categories: Sequence[Sequence[int]]) -> ShapeBias:
    """How often a head classifies by the shape.

    The prediction is the category whose classes have the highest mean probability. Images with equal cues are left
    out.

    Args:
        logits: (N, K) of all classes.
        shape: categories of the shapes, int64 (N,).
        texture: categories of the textures, int64 (N,).
        categories: the classes of each category.

    Raises:
        ValueError: sizes differ, a category is empty, or it has a class that does not exist.
    """
    if not len(logits) == len(shape) == len(texture):
        raise ValueError(f"{len(logits)} logits, {len(shape)} shapes and {len(texture)} textures: expected as many")
    if any(not len(own) or not all(0 <= k < logits.shape[1] for k in own) for own in categories):
        raise ValueError(f"every category needs a class, and all of them from 0 to {logits.shape[1] - 1}")
    probs = logits.float().softmax(1)
    named = torch.stack([probs[:, list(own)].mean(1) for own in categories], 1).argmax(1)
    conflict = shape != texture
    by_shape, by_texture = (int((conflict & (named == cue)).sum()) for cue in (shape, texture))
    told = by_shape + by_texture
    return ShapeBias(by_shape / told if told else float("nan"), by_shape, by_texture, int(conflict.sum()))


def background_gap(
    mixed_same: tuple[Tensor, Tensor], mixed_rand: tuple[Tensor, Tensor], *, table: Tensor
) -> BackgroundGap:
    """How much a classifier relies on the background.

    Args:
        mixed_same: logits (N, K) and categories (N,) of objects before backgrounds of their own class.
        mixed_rand: the same, before backgrounds of any class.
        table: the category of each class, int64 (K,), -1 for none; such a prediction counts as wrong.

    Raises:
        ValueError: sizes differ, or there is no image.
    """
    accuracies = []
    for logits, category in (mixed_same, mixed_rand):
        if not len(logits) or len(logits) != len(category) or logits.shape[1] != len(table):
            raise ValueError(
                f"logits {tuple(logits.shape)}, {len(category)} categories and a table of {len(table)}: expected "
                "(N, K), N and K, and N above 0"
            )
        named = table.to(logits.device)[logits.argmax(1)]
        accuracies.append(float((named == category).float().mean()))
    return BackgroundGap(accuracies[0] - accuracies[1], *accuracies)


def read_categories(file: str | Path) -> dict[str, list[int]]:
    """The classes of each category, such as the 16 of cue-conflict images: ``{"airplane": [404], ...}``.

    Raises:
        DataError: the file is missing, or its content is something else.
    """
    content = _json(file, 'categories and their classes, {"airplane": [404], ...}')
    lists = content.values() if isinstance(content, Mapping) else [None]
    if not lists or not all(isinstance(own, list) and own and all(_is_class(k) for k in own) for own in lists):
        raise DataError(f'{file}: expected categories and their classes of 0 to 999, {{"airplane": [404], ...}}')
    return dict(content)


def read_table(file: str | Path) -> Tensor:
    """The category in ImageNet-9 of each class, int64 (1000,), -1 for none: ``{"0": -1, ..., "150": 0, ...}``.

    Raises:
        DataError: the file is missing, or does not give 370 of the 1000 classes a category from 0 to 8.
    """
    content = _json(file, 'the category of each class, {"0": -1, ..., "999": -1}')
    keys = [str(k) for k in range(CLASSES)]
    if not isinstance(content, Mapping) or set(content) != set(keys):
        raise DataError(f'{file}: expected the category of each of {CLASSES} classes, {{"0": -1, ..., "999": -1}}')
    values = [content[key] for key in keys]
    if not all(type(value) is int and -1 <= value < NINE for value in values):
        raise DataError(f"{file}: expected categories of 0 to {NINE - 1}, or -1 for none")
    table = torch.tensor(values)
    if (found := int((table >= 0).sum())) != MAPPED:
        raise DataError(f"{file}: gives {found} classes a category, in ImageNet-9 {MAPPED} have one")
    return table


def _is_class(value: Any) -> bool:
    return type(value) is int and 0 <= value < CLASSES


def _json(file: str | Path, what: str) -> Any:
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"there is no file {path}. Give one of JSON with {what}: it is not part of this package")
    return read_json(path, error=DataError, said=f"{path} is no JSON", advice=f"expected {what}")
