"""No data at all: a count of rounds for methods that make their own images."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from kd_lightning.errors import ConfigError
from kd_lightning.sources.context import Context


class Rounds:
    """The numbers of an epoch's rounds; goes on in the middle of an epoch where a killed fit stopped.

    Args:
        rounds: of one epoch.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.epoch = self.drawn = 0
        self._resumed = False

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[Any]:
        if not self._resumed:
            self.drawn = 0
        self._resumed = False
        while self.drawn < self.rounds:
            self.drawn += 1
            yield self.batch(self.drawn - 1)

    def batch(self, number: int) -> Any:
        """What the round with this number in its epoch is given."""
        return number

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``sampler.set_epoch``."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """How many were drawn in this epoch."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind them at the next ``iter``; Lightning calls this only within an epoch."""
        self.drawn, self._resumed = state["drawn"], True


class Free:
    """``rounds`` rounds an epoch.

    Args:
        rounds: batches of one epoch; what a round is, the method says. None where the method says their number, too.
    """

    offers = frozenset({"source.free"})

    def __init__(self, *, rounds: int | None) -> None:
        self.rounds = rounds

    def prepare(self, context: Context) -> Rounds:
        """A sized iterable of nothing but numbers; looks at no image."""
        rounds = context.rounds if self.rounds is None else self.rounds
        if rounds is None:
            raise ConfigError("source.rounds: expected a whole number, because the method does not say how many")
        return Rounds(rounds)
