"""The 1,797 handwritten 8x8 digits included in scikit-learn: real images without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

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
    table = torch.from_numpy(_table())
    pixels = table[:, :-1].view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    everything = Split(fit_to(pixels, size=size, channels=1), table[:, -1].long())
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


def _table() -> np.ndarray:
    """Pixels and digit of each image, (1797, 65); read without scikit-learn, which takes long to import."""
    found = find_spec("sklearn")
    file = Path(str(found and found.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
