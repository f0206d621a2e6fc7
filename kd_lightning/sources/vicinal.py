"""Real images drawn by label: for every drawn label an image with that label or one near it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from kd_lightning.data.batches import VicinalBatch
from kd_lightning.data.loader import Augmentation
from kd_lightning.sources.context import Context
from kd_lightning.sources.data_free import Rounds
from kd_lightning.sources.vicinity import Vicinity, places


class Vicinal:
    """Labels drawn uniformly from the distinct ones of the training set, with noise, and an image near each.

    With ``m_kappa=0`` and ``sigma=0`` each image has exactly the drawn label, so that all labels are equally frequent.

    Args:
        rounds: batches per epoch.
        batch_size: images per batch and rank.
        kind: ``soft`` or ``hard``, see :class:`kd_lightning.sources.vicinity.Vicinity`.
        m_kappa: width of the vicinity, in widest gaps between neighbouring labels.
        sigma: noise on the drawn labels; None for the rule of thumb.
        augment: applied to x in this order.
    """

    offers = frozenset({"source.images", "source.vicinity"})

    def __init__(
        self,
        *,
        rounds: int,
        batch_size: int,
        kind: Literal["soft", "hard"] = "soft",
        m_kappa: float = 2.0,
        sigma: float | None = None,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        self.rounds, self.batch_size = rounds, batch_size
        self.kind, self.m_kappa, self.sigma = kind, m_kappa, sigma
        self.augment = tuple(augment)

    def prepare(self, context: Context) -> VicinalLoader:
        """A resumable loader of such batches."""
        return VicinalLoader(self, context)


class VicinalLoader(Rounds):
    """Resumable: each batch depends only on seed, epoch, its number within the epoch and the rank."""

    def __init__(self, source: Vicinal, context: Context) -> None:
        super().__init__(source.rounds)
        split, task = context.real(), getattr(context.dataset, "task", None)
        self.source, self.seed, self.rank = source, context.order_seed, context.rank
        self.images = split.images.to(context.device)
        self.labels = places(task, split.labels).float().to(context.device)
        self.vicinity = Vicinity(self.labels, kind=source.kind, m_kappa=source.m_kappa, sigma=source.sigma)
        self.rng = torch.Generator(context.device)

    def batch(self, number: int) -> VicinalBatch:
        """A fresh batch."""
        words = np.random.SeedSequence((self.seed, self.epoch, number, self.rank))
        self.rng.manual_seed(int(words.generate_state(1, np.uint64)[0]))
        n = self.source.batch_size
        drawn = self.vicinity.draw(n, self.rng)
        index = drawn.pop("index")
        x = self.images.index_select(0, index).float().div_(255)
        for augmentation in self.source.augment:
            x = augmentation(x, self.rng)
        return VicinalBatch(x=x, y=self.labels[index], goal=self.vicinity.goals(n, self.rng), **drawn)
