"""The mean of a number for every class since somebody last looked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.distributed import collectives


class ClassMeans(nn.Module):
    """What was counted is in the state dict, so that a resumed fit goes on.

    Args:
        classes: how many.
    """

    total: Tensor
    count: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.register_buffer(name, torch.zeros(classes))

    @torch.no_grad()
    def add(self, values: Tensor, y: Tensor) -> None:
        """Count numbers (N,) of classes (N,) int64; waits for no device."""
        self.total.index_add_(0, y, values.detach().float())
        self.count.index_add_(0, y, torch.ones_like(y, dtype=self.count.dtype))

    @torch.no_grad()
    def take(self) -> Tensor:
        """Means (classes,) over all ranks, alike on each, and begin anew; NaN for a class that was not counted."""
        total, count = collectives.mean(torch.stack([self.total, self.count]))
        self.total.zero_()
        self.count.zero_()
        return total / count
