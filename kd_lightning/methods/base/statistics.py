"""Statistics of batches: over all ranks, as a moving average, and the batch with the lowest loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_lightning.distributed import collectives
from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.moments import MeanVar, pooled


def over_ranks(statistics: list[MeanVar]) -> list[MeanVar]:
    """Means and variances (C,) over the batches of all ranks; with one rank ``statistics`` itself."""
    if collectives.world() == 1:
        return statistics
    flat = torch.cat([torch.cat(pair) for pair in statistics])
    every = collectives.gathered(flat[None]).split([2 * len(mean) for mean, _ in statistics], dim=1)
    return [pooled(*both.chunk(2, dim=1)) for both in every]


class BatchNormMixture:
    """Moving average of the statistics of all batches, mixed with those of the next batch in its loss.

    The batch-norm term of FastDFKD (Fang et al., AAAI 2022).

    Args:
        momentum: r, the weight of the average in the mixture and in its own update.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.average: list[MeanVar] | None = None

    def loss(self, tap: BatchNormTap) -> Tensor:
        """Distance of (1-r) batch + r average from the running statistics of the tapped network."""
        return batch_norm_statistics(tap.statistics, tap.layers, ema=self.average, momentum=self.momentum)

    def update(self, statistics: Sequence[MeanVar]) -> None:
        """Update the average with a batch; the first batch becomes the average."""
        now = [(mean.detach(), var.detach()) for mean, var in statistics]
        if self.average is not None:
            r, both = self.momentum, zip(self.average, now, strict=True)
            now = [(r * m + (1 - r) * a, r * v + (1 - r) * b) for (m, v), (a, b) in both]
        self.average = now

    def load(self, average: list[MeanVar] | None, device: torch.device | str) -> None:
        """Restore a saved average."""
        self.average = average and [(mean.to(device), var.to(device)) for mean, var in average]


class Best:
    """The batch with the lowest loss so far, chosen on the device without synchronisation.

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
