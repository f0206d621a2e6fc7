"""Finds the first loss term that is not finite, without synchronising with the device in every round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_lightning.distributed import collectives
from kd_lightning.errors import TrainingError


class LossMonitor:
    """Records, on the device, the first round in which each term was not finite."""

    def __init__(self) -> None:
        self.first_bad: dict[tuple[str, ...], Tensor] = {}

    def note(self, terms: Mapping[str, Tensor], round_: int) -> Tensor:
        """Check this round's scalars, which may differ in name from the last round's; returns one fp32 tensor."""
        values = torch.stack([value.detach().float() for value in terms.values()])
        names = tuple(terms)
        first = self.first_bad.get(names)
        if first is None:
            first = torch.full_like(values, -1)
        self.first_bad[names] = torch.where(~values.isfinite() & (first < 0), float(round_), first)
        return values

    def refuse_nan(self, method: str) -> None:
        """Synchronise with the device and over ranks, so that all raise the same error.

        Raises:
            TrainingError: a term was not finite; names the first such term and its round.
        """
        rounds: dict[str, int] = {}
        for names, first in self.first_bad.items():
            bad = collectives.largest(first).tolist()
            rounds |= {name: int(r) for name, r in zip(names, bad, strict=True) if r >= 0}
        if rounds:
            term = min(rounds, key=rounds.__getitem__)
            raise TrainingError(
                f"the loss term '{term}' of {method} was not finite in round {rounds[term]}. "
                "Lower its learning rate or weight, or run with trainer.precision=32-true"
            )
