"""Learning-rate schedules that PyTorch does not have."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def piecewise(optimizer: Optimizer, *, epochs: Sequence[int], factors: Sequence[float]) -> LambdaLR:
    """From each of ``epochs`` on (counted from 0), the initial learning rate times the factor of the same position."""
    steps = (1.0, *factors)
    return LambdaLR(optimizer, lambda epoch: steps[bisect_right(epochs, epoch)])


def late_linear(optimizer: Optimizer, *, epochs: int, last: float = 1 / 3) -> LambdaLR:
    """The initial learning rate, and in the ``last`` share of ``epochs`` a line from there to 0."""
    return LambdaLR(optimizer, lambda epoch: min(1.0, max(0.0, 1 - epoch / epochs) / last))


def late_exponential(optimizer: Optimizer, *, start: int, gamma: float) -> LambdaLR:
    """The initial learning rate, and from epoch ``start`` on ``gamma`` times that of the epoch before."""
    return LambdaLR(optimizer, lambda epoch: gamma ** max(0, epoch + 1 - start))


class Stretched(LRScheduler):
    """A schedule in which each epoch of another lasts ``by`` epochs: milestones and warm-ups are stretched too.

    Args:
        optimizer: the optimiser whose learning rate to set.
        schedule: builds the inner schedule from the optimiser.
        by: factor on the length, more than 0.
    """

    def __init__(self, optimizer: Optimizer, *, schedule: Callable[[Optimizer], Any], by: float) -> None:
        self.optimizer, self.by = optimizer, by
        self.inner = schedule(optimizer)
        self.epoch = self.reached = 0

    def step(self, epoch: int | None = None) -> None:
        """Advance one epoch, and the inner schedule by every epoch of its own that has ended."""
        self.epoch += 1
        while self.reached + 1 <= self.epoch / self.by + 1e-9:
            self.reached += 1
            self.inner.step()

    def get_last_lr(self) -> list[Any]:
        """The learning rate of every parameter group."""
        return self.inner.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Both epoch counters and the state of the inner schedule."""
        return {"epoch": self.epoch, "reached": self.reached, "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.epoch, self.reached = state_dict["epoch"], state_dict["reached"]
        self.inner.load_state_dict(state_dict["inner"])


def annealed(optimizer: Optimizer, *, epochs: int) -> LambdaLR:
    """The initial learning rate divided by (1 + 10 e / (E + 1))^0.75 in epoch e = 0 .. E - 1, of domain adaptation."""
    return LambdaLR(optimizer, lambda epoch: (1 + 10 * epoch / (epochs + 1)) ** -0.75)


def grown(shape: str, epoch: int, epochs: int, start: float, end: float) -> float:
    """A weight in epoch e = 0 .. E - 1 that goes from ``start`` towards ``end``, which it would reach in epoch E.

    Args:
        shape: ``exponential``: start (end / start)^(e/E); ``linear``; ``constant``: start; or ``step``: start in the
            first half, end in the second.
        epoch: e.
        epochs: E.
        start: the weight in the first epoch; more than 0 where the shape is exponential.
        end: the weight after the last one.

    Raises:
        ValueError: another shape.
    """
    if shape == "exponential":
        return start * (end / start) ** (epoch / epochs)
    if shape == "linear":
        return start + (end - start) * epoch / epochs
    if shape == "constant":
        return start
    if shape == "step":
        return start if 2 * epoch < epochs else end
    raise ValueError(f"no weight grows as {shape}: take exponential, linear, constant or step")
