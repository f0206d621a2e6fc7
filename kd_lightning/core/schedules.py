"""Learning-rate schedules that PyTorch has not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def piecewise(optimizer: Optimizer, *, epochs: Sequence[int], factors: Sequence[float]) -> LambdaLR:
    """The first learning rate, and from each of ``epochs`` on (counted from 0) that times the factor beside it."""
    steps = (1.0, *factors)
    return LambdaLR(optimizer, lambda epoch: steps[bisect_right(epochs, epoch)])
