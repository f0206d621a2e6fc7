"""Two handwritten digits side by side in one image, whose labels are the digits that are there: needs no download."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.sides import Size
from kd_lightning.data.dataset import Dataset, Split, fit_to
from kd_lightning.data.datasets import digits


def load(
    *,
    task: MultiLabel,
    size: Size = (8, 16),
    train: int = 1000,
    val: int = 200,
    test: int = 400,
    seed: int = 0,
) -> Dataset:
    """Draw pairs of scikit-learn's digits, grey; no digit is in images of two parts.

    Args:
        task: of ten labels; an image of the same digit twice has one.
        size: height and width of an image, or one number for both.
        train: number of training images.
        val: number of validation images; 0 for none.
        test: number of test images.
        seed: of the pairs.
    """
    single = digits.load()
    parts = {"train": (single.train, train), "val": (single.val, val), "test": (single.test, test)}
    drawn = {
        part: _pairs(split, n, size, torch.Generator().manual_seed(3 * seed + number)) if split and n else None
        for number, (part, (split, n)) in enumerate(parts.items())
    }
    train_, val_, test_ = drawn.values()
    return Dataset("two_digits", single.classes, train_, val_, test_, layout="sklearn", encoding="raw", task=task)


def _pairs(split: Split, n: int, size: Size, generator: torch.Generator) -> Split:
    pairs = torch.randint(len(split), (n, 2), generator=generator)
    images = torch.cat([split.images[pairs[:, 0]], split.images[pairs[:, 1]]], 3)
    labels: Tensor = torch.zeros(n, 10, dtype=torch.uint8).scatter_(1, split.labels[pairs], 1)
    return Split(fit_to(images, size=size, channels=1), labels)
