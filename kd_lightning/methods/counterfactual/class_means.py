"""Means of a number by class since they were last read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.distributed import collectives


class ClassMeans(nn.Module):
    """Sums and counts by class, in the state dict, so that a resumed fit keeps them.

    Args:
        classes: number of classes.
    """

    total: Tensor
    count: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.register_buffer(name, torch.zeros(classes))

    @torch.no_grad()
    def add(self, values: Tensor, y: Tensor) -> None:
        """Add numbers (N,) of classes (N,) int64, without synchronising with the device."""
        self.total.index_add_(0, y, values.detach().float())
        self.count.index_add_(0, y, torch.ones_like(y, dtype=self.count.dtype))

    @torch.no_grad()
    def take(self) -> Tensor:
        """Return means (classes,) over all ranks, the same on each, and reset; NaN for a class without numbers."""
        total, count = collectives.mean(torch.stack([self.total, self.count]))
        self.total.zero_()
        self.count.zero_()
        return total / count
