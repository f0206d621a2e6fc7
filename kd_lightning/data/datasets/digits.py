"""The 1,797 handwritten 8x8 digits included in scikit-learn: real images without a download."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from kd_lightning.core.sides import Size
from kd_lightning.data.dataset import Dataset, Split, fit_to, hold_out


def load(*, size: Size = 8, val: float = 0.15, test: float = 0.2, seed: int = 0) -> Dataset:
    """Load the digits, grey, with values 0 to 16 scaled to 0 to 255.

    Args:
        size: height and width in pixels, or one number for both.
        val: share of all 1,797 images held out for validation; 0 for none.
        test: share of all 1,797 images held out for the test.
        seed: of the stratified split.
    """
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    everything = Split(fit_to(pixels, size=size, channels=1), torch.from_numpy(bunch.target).long())
    rest, test_split = hold_out(everything, test, seed=seed)
    train, val_split = hold_out(rest, round(val * len(everything)), seed=seed) if val else (rest, None)
    return Dataset(
        name="digits",
        classes=[str(digit) for digit in range(10)],
        train=train,
        val=val_split,
        test=test_split,
        layout="sklearn",
        encoding="raw",
    )
