"""Helpers for rounds in phases: standing still, beginning anew, averages of statistics, the best batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.moments import MeanVar


@contextmanager
def frozen(net: nn.Module, *, in_eval: bool = False) -> Iterator[None]:
    """Inside, gradients cross ``net`` without reaching its weights, which saves computing them.

    Args:
        net: a network.
        in_eval: keep it in evaluation mode meanwhile, so that its batch norms do not move either.
    """
    was_training = net.training
    learning = [p for p in net.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    if in_eval:
        net.eval()
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
        if in_eval:
            net.train(was_training)


def restart(optimizer: Any) -> None:
    """Forget moments and step counts of an optimiser, or of Lightning's wrapper of one; learning rates stay."""
    getattr(optimizer, "optimizer", optimizer).state.clear()


def redraw(net: nn.Module, rng: torch.Generator) -> None:
    """Weights and running statistics as PyTorch first draws them, from a generator on the CPU."""
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        for layer in net.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()


class BatchNormMixture:
    """Statistics of all batches so far as a moving average, of which the next batch has to explain only a part.

    The batch-norm term of FastDFKD (Fang et al., AAAI 2022).

    Args:
        momentum: r, the average's part of the mixture and of itself.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.average: list[MeanVar] | None = None

    def loss(self, tap: BatchNormTap) -> Tensor:
        """Distance of (1-r) batch + r average from what the tapped network's batch norms keep."""
        return batch_norm_statistics(tap.statistics, tap.layers, ema=self.average, momentum=self.momentum)

    def update(self, statistics: Sequence[MeanVar]) -> None:
        """Take in a batch; the first is the average."""
        now = [(mean.detach(), var.detach()) for mean, var in statistics]
        if self.average is not None:
            r, both = self.momentum, zip(self.average, now, strict=True)
            now = [(r * m + (1 - r) * a, r * v + (1 - r) * b) for (m, v), (a, b) in both]
        self.average = now

    def load(self, average: list[MeanVar] | None, device: torch.device | str) -> None:
        """Go on with an average that was saved."""
        self.average = average and [(mean.to(device), var.to(device)) for mean, var in average]


class Best:
    """The batch with the lowest loss so far, chosen on the device without asking it.

    Args:
        kept: loss and tensors of an earlier ``kept``.
    """

    def __init__(self, *kept: Tensor) -> None:
        self.kept = kept

    def offer(self, loss: Tensor, *tensors: Tensor) -> None:
        """Keep loss and tensors if the loss is lower than that of those kept."""
        new = tuple(tensor.detach() for tensor in (loss, *tensors))
        if self.kept:
            better = new[0] < self.kept[0]
            new = tuple(torch.where(better, a, b) for a, b in zip(new, self.kept, strict=True))
        self.kept = new
