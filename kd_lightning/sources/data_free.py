"""No data: only a number of rounds, for methods that generate their own images."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from kd_lightning.errors import ConfigError
from kd_lightning.sources.context import Context


class Rounds:
    """Iterates over the numbers of an epoch's rounds; resumable within an epoch.

    Args:
        rounds: per epoch.
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
        """The content of round ``number`` of the epoch."""
        return number

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``sampler.set_epoch``."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Number of rounds already drawn in this epoch."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the rounds already drawn at the next ``iter``; Lightning calls this only within an epoch."""
        self.drawn, self._resumed = state["drawn"], True


class Free:
    """A source without images, with ``rounds`` rounds per epoch.

    Args:
        rounds: batches per epoch; the method defines what a round does. None if the method also sets their number.
    """

    offers = frozenset({"source.free"})

    def __init__(self, *, rounds: int | None) -> None:
        self.rounds = rounds

    def prepare(self, context: Context) -> Rounds:
        """A sized iterable of round numbers; uses no image."""
        rounds = context.rounds if self.rounds is None else self.rounds
        if rounds is None:
            raise ConfigError("source.rounds: expected a whole number, because the method does not say how many")
        return Rounds(rounds)
