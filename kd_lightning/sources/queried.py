"""Real images with the teacher's answers in place of its presence."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.sources.context import Context
from kd_lightning.sources.queried_once import ask


class Queried:
    """``images`` training images, answered by the teacher and stored; training sees the answers, not the teacher.

    Args:
        images: how many of the training images are asked about, a random choice; None for all.
        batch_size: images per batch and rank.
        augment: applied to each batch; the answer stays that of the image as it was asked about.
        seed: of the choice.
    """

    offers = frozenset({"source.images", "source.labels", "source.answers"})

    def __init__(
        self, *, images: int | None, batch_size: int, augment: Sequence[Augmentation] = (), seed: int = 0
    ) -> None:
        self.images, self.batch_size, self.augment, self.seed = images, batch_size, augment, seed

    def prepare(self, context: Context) -> TensorLoader:
        """Ask, or read what was answered before; raises what :func:`ask` does."""
        split = context.real()
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))
        index = order[: self.images].sort().values
        answered, answers = ask(context, split.images[index])
        index = index[answered]
        return context.serve(
            split.images[index],
            split.labels[index],
            answers=answers,
            batch_size=self.batch_size,
            augment=self.augment,
        )
