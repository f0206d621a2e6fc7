"""Watches the terms of a loss for the first one that is not finite, without asking the device in every round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_lightning import ranks
from kd_lightning.errors import TrainingError


class TermWatch:
    """Remembers, on the device, the first round in which each term was not finite."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.first_bad: Tensor | None = None

    def note(self, terms: Mapping[str, Tensor], round_: int) -> Tensor:
        """Take this round's scalars; returns them as one fp32 tensor."""
        values = torch.stack([value.detach().float() for value in terms.values()])
        if self.first_bad is None:
            self.first_bad, self.names = torch.full_like(values, -1), list(terms)
        fresh = ~values.isfinite() & (self.first_bad < 0)
        self.first_bad = torch.where(fresh, float(round_), self.first_bad)
        return values

    def refuse_nan(self, method: str) -> None:
        """Ask the device; ranks ask each other, so that all end alike.

        Raises:
            TrainingError: a term was not finite; names the first such term and its round.
        """
        if self.first_bad is None:
            return
        first_bad = ranks.largest(self.first_bad).tolist()
        rounds = {n: int(r) for n, r in zip(self.names, first_bad, strict=True) if r >= 0}
        if rounds:
            term = min(rounds, key=rounds.__getitem__)
            raise TrainingError(
                f"the loss term '{term}' of {method} was not finite in round {rounds[term]}. "
                "Lower its learning rate or weight, or run with trainer.precision=32-true"
            )
