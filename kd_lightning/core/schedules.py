"""Learning-rate schedules that PyTorch has not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def piecewise(optimizer: Optimizer, *, epochs: Sequence[int], factors: Sequence[float]) -> LambdaLR:
    """The first learning rate, and from each of ``epochs`` on (counted from 0) that times the factor beside it."""
    steps = (1.0, *factors)
    return LambdaLR(optimizer, lambda epoch: steps[bisect_right(epochs, epoch)])


class Stretched(LRScheduler):
    """Any schedule as it would be if each of its epochs were ``by`` epochs: milestones, warm-ups and all.

    Args:
        optimizer: whose learning rate it is.
        schedule: makes the schedule for the optimiser.
        by: how many times as long, more than 0.
    """

    def __init__(self, optimizer: Optimizer, *, schedule: Callable[[Optimizer], Any], by: float) -> None:
        self.optimizer, self.by = optimizer, by
        self.inner = schedule(optimizer)
        self.epoch = self.reached = 0

    def step(self, epoch: int | None = None) -> None:
        """Go on by one epoch, and the schedule by those of its own that are over."""
        self.epoch += 1
        while self.reached + 1 <= self.epoch / self.by + 1e-9:
            self.reached += 1
            self.inner.step()

    def get_last_lr(self) -> list[Any]:
        """Of every group of parameters."""
        return self.inner.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"epoch": self.epoch, "reached": self.reached, "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.epoch, self.reached = state_dict["epoch"], state_dict["reached"]
        self.inner.load_state_dict(state_dict["inner"])
