"""No data at all: a count of rounds for methods that make their own images."""

from __future__ import annotations

from kd_lightning.data.sources.context import Context


class Free:
    """``rounds`` rounds an epoch.

    Args:
        rounds: batches of one epoch; what a round is, the method says.
    """

    offers = frozenset({"source.free"})

    def __init__(self, *, rounds: int) -> None:
        self.rounds = rounds

    def prepare(self, context: Context) -> range:
        """A sized iterable of nothing but numbers; looks at no image."""
        return range(self.rounds)
