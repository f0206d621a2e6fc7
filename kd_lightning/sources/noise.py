"""Images of pure noise: a lower bound for data-free methods."""

from __future__ import annotations

import numpy as np
import torch

from kd_lightning.core.sides import sides
from kd_lightning.data.batches import Batch
from kd_lightning.sources.context import Context
from kd_lightning.sources.data_free import Rounds


class Noise:
    """Independent normal pixels with the data's mean and standard deviation per channel, fresh in every batch.

    Args:
        rounds: batches per epoch.
        batch_size: images per batch and rank.
        size: height and width, or one number for both; None for those of the data.
    """

    offers = frozenset({"source.images"})

    def __init__(self, *, rounds: int, batch_size: int, size: int | list[int] | None = None) -> None:
        self.rounds, self.batch_size, self.size = rounds, batch_size, size

    def prepare(self, context: Context) -> NoiseLoader:
        """A resumable loader of unlabelled noise."""
        return NoiseLoader(self.rounds, self.batch_size, context, self.size)


class NoiseLoader(Rounds):
    """Resumable: each batch depends only on seed, epoch, its number within the epoch and the rank."""

    def __init__(self, rounds: int, batch_size: int, context: Context, size: int | list[int] | None = None) -> None:
        super().__init__(rounds)
        channels, *own = context.dataset.image_shape
        self.shape = (batch_size, channels, *(own if size is None else sides(size)))
        self.seed, self.rank = context.order_seed, context.rank
        self.rng = torch.Generator(context.device)
        self.mean = torch.tensor(context.mean, device=context.device).view(-1, 1, 1)
        self.std = torch.tensor(context.std, device=context.device).view(-1, 1, 1)

    def batch(self, number: int) -> Batch:
        """Fresh noise without labels."""
        words = np.random.SeedSequence((self.seed, self.epoch, number, self.rank))
        self.rng.manual_seed(int(words.generate_state(1, np.uint64)[0]))
        noise = torch.randn(self.shape, device=self.rng.device, generator=self.rng)
        return Batch(noise * self.std + self.mean, None)
