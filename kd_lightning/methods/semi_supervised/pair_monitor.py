"""Says it if a discriminator of pairs wins everything, from which its generator learns little."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from kd_lightning.distributed import collectives


class PairMonitor(nn.Module):
    """Counts rounds in a row in which every real pair scored above 0 and every generated one below.

    The count is in the state dict, so that a resumed fit goes on with it.

    Args:
        rounds: fewest such rounds that are worth a word, however short an epoch is.
    """

    streak: Tensor

    def __init__(self, rounds: int = 100) -> None:
        super().__init__()
        self.rounds = rounds
        self.register_buffer("streak", torch.zeros(()))

    def add(self, on_real: Tensor, on_made: Tensor) -> None:
        """Add scores (N,) of real and (M,) of generated pairs, without synchronising."""
        self.streak.add_(1).mul_((on_real > 0).all() & (on_made < 0).all())

    def tell(self, epoch: int) -> None:
        """Warn where the streak reached the rounds of an epoch within the last one."""
        rounds, streak = max(self.rounds, epoch), float(self.streak)
        if collectives.rank() == 0 and rounds <= streak < rounds + epoch:
            warnings.warn(
                f"the discriminator has told every real pair from every generated one for {rounds} rounds: the good "
                "generator learns little from it. Lower method.optimizer_d.lr, or raise the discriminator's noise",
                stacklevel=2,
            )
