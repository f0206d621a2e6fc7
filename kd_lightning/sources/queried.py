"""Real images with stored answers of the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.sources.context import Context
from kd_lightning.sources.queried_once import ask


class Queried:
    """``images`` training images, answered once by the teacher; training uses the stored answers, not the teacher.

    Args:
        images: number of training images to query, chosen at random; None for all.
        batch_size: images per batch and rank.
        augment: applied to each batch; the target stays the answer to the original image.
        seed: of the choice.
    """

    needs = frozenset({"task.multi_label"})  # takes it
    offers = frozenset({"source.images", "source.index", "source.labels", "source.answers"})

    def __init__(
        self, *, images: int | None, batch_size: int, augment: Sequence[Augmentation] = (), seed: int = 0
    ) -> None:
        self.images, self.batch_size, self.augment, self.seed = images, batch_size, augment, seed

    def prepare(self, context: Context) -> TensorLoader:
        """Query, or read earlier answers; raises what :func:`ask` does."""
        split = context.real(labels="source.labels" in context.needs)
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))
        index = order[: self.images].sort().values
        answered, answers = ask(context, _rows(split.images, index))
        index = index[answered]
        return context.serve(
            _rows(split.images, index),
            split.labels[index] if split.labelled else None,
            answers=answers,
            batch_size=self.batch_size,
            augment=self.augment,
        )


def _rows(images: Tensor, index: Tensor) -> Tensor:
    """The images at places in order; all of them as they are, for they may lie in a file larger than memory."""
    return images if len(index) == len(images) else images[index]
