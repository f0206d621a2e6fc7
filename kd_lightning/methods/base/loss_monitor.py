"""Watches the terms of a loss for the first one that is not finite, without asking the device in every round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_lightning.distributed import collectives
from kd_lightning.errors import TrainingError


class LossMonitor:
    """Remembers, on the device, the first round in which each term was not finite."""

    def __init__(self) -> None:
        self.first_bad: dict[tuple[str, ...], Tensor] = {}

    def note(self, terms: Mapping[str, Tensor], round_: int) -> Tensor:
        """Take this round's scalars, not necessarily those of the round before; returns them as one fp32 tensor."""
        values = torch.stack([value.detach().float() for value in terms.values()])
        names = tuple(terms)
        first = self.first_bad.get(names)
        if first is None:
            first = torch.full_like(values, -1)
        self.first_bad[names] = torch.where(~values.isfinite() & (first < 0), float(round_), first)
        return values

    def refuse_nan(self, method: str) -> None:
        """Ask the device; ranks ask each other, so that all end alike.

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
