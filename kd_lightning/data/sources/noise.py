"""Images of pure noise: the floor every data-free method has to rise above."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kd_lightning.data.loader import Batch
from kd_lightning.data.sources.context import Context


class Noise:
    """Pixels independent and normal with the data's mean and standard deviation per channel, fresh in every batch.

    Args:
        rounds: batches of one epoch.
        batch_size: images per batch and rank.
    """

    offers = frozenset({"source.images"})

    def __init__(self, *, rounds: int, batch_size: int) -> None:
        self.rounds, self.batch_size = rounds, batch_size

    def prepare(self, context: Context) -> NoiseLoader:
        """A resumable loader of unlabelled noise."""
        return NoiseLoader(self.rounds, self.batch_size, context)


class NoiseLoader:
    """Sized, resumable; its batches depend on seed, rank and how many were drawn before."""

    def __init__(self, rounds: int, batch_size: int, context: Context) -> None:
        self.rounds = rounds
        self.shape = (batch_size, *context.dataset.image_shape)
        self.rng = torch.Generator(context.device).manual_seed(context.order_seed * 1009 + context.rank)
        self.device = context.device
        self.mean = torch.tensor(context.mean, device=context.device).view(-1, 1, 1)
        self.std = torch.tensor(context.std, device=context.device).view(-1, 1, 1)

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.rounds):
            noise = torch.randn(self.shape, device=self.device, generator=self.rng)
            yield Batch(noise * self.std + self.mean, None)

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the noise that would have come next."""
        self.rng.set_state(state["rng"])
