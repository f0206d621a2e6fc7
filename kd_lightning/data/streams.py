"""Batches of two sets side by side: labelled images and images without labels."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from kd_lightning.data.batches import Batch, StreamsBatch
from kd_lightning.data.loader import TensorLoader, mixed_seed
from kd_lightning.errors import DataError


class StreamsLoader:
    """Joins a batch of each of two loaders; the shorter one begins again as often as needed.

    Each stream has an order of its own, passes over its set at its own pace, and begins anew with every epoch. The
    state is the state of both, so a killed fit goes on with the next batch of each.

    Args:
        labelled: images with labels.
        unlabelled: images whose labels, if it has any, are dropped.
        batches: of one epoch; by default those of the longer stream.

    Raises:
        DataError: the images of the two have different shapes.
    """

    def __init__(self, labelled: TensorLoader, unlabelled: TensorLoader, *, batches: int | None = None) -> None:
        one, other = tuple(labelled.images.shape[1:]), tuple(unlabelled.images.shape[1:])
        if one != other:
            raise DataError(
                f"labelled images are {one}, images without labels {other} (channels, height, width): give both the "
                "same data.size and data.channels"
            )
        unlabelled.labels, unlabelled.seed = None, mixed_seed(3, unlabelled.seed)
        self.labelled, self.unlabelled = labelled, unlabelled
        self.batches = batches or max(len(labelled), len(unlabelled))
        self.drawn = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches of one epoch on this rank."""
        return self.batches

    def __iter__(self) -> Iterator[StreamsBatch]:
        if self.drawn >= self.batches or (self.drawn > 0 and not self._resumed):
            self.drawn = 0
        labelled, unlabelled = _endless(self.labelled), _endless(self.unlabelled)
        while self.drawn < self.batches:
            self.drawn, self._resumed = self.drawn + 1, False
            yield StreamsBatch(next(labelled), next(unlabelled))

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``sampler.set_epoch``."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` in both streams unless already in it."""
        if epoch != self.labelled.epoch:
            self.drawn, self._resumed = 0, False
        self.labelled.set_epoch(epoch)
        self.unlabelled.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The states of both streams and the number of batches drawn in the epoch."""
        return {
            "labelled": self.labelled.state_dict(),
            "unlabelled": self.unlabelled.state_dict(),
            "drawn": self.drawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, at the next ``iter``, with the batch after the last one drawn.

        Raises:
            ConfigError: number of images, batch size or number of processes of a stream differ.
        """
        self.labelled.load_state_dict(state["labelled"])
        self.unlabelled.load_state_dict(state["unlabelled"])
        self.drawn, self._resumed = state["drawn"], True


def _endless(loader: TensorLoader) -> Iterator[Batch]:
    while True:
        yield from loader
