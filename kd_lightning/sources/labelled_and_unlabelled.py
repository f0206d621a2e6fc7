"""A few labelled images, and many whose labels the method does not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from kd_lightning.data.loader import Augmentation
from kd_lightning.data.streams import StreamsLoader
from kd_lightning.errors import DataError
from kd_lightning.sources.context import Context
from kd_lightning.sources.real import few_places


class LabelledAndUnlabelled:
    """``per_class`` labelled images of each class, and beside them images without labels, in one batch.

    The labelled ones are those of ``source=few_shot`` with the same ``seed``.

    Args:
        per_class: labelled images of each class.
        batch_size: labelled images per batch and rank; all of them if there are fewer.
        unlabelled_batch_size: images without labels per batch and rank.
        unlabelled: ``all`` training images, as in the papers, or the ``rest``, without the labelled ones.
        augment: applied to both in this order.
        seed: of the choice.
    """

    needs = frozenset({"task.classification"})
    offers = frozenset({"source.two_streams"})

    def __init__(
        self,
        *,
        per_class: int,
        batch_size: int,
        unlabelled_batch_size: int,
        unlabelled: Literal["all", "rest"] = "all",
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        self.per_class, self.batch_size, self.unlabelled_batch_size = per_class, batch_size, unlabelled_batch_size
        self.unlabelled, self.augment, self.seed = unlabelled, augment, seed

    def prepare(self, context: Context) -> StreamsLoader:
        """A loader of both; an epoch is a pass over the images without labels.

        Raises:
            DataError: a class has too few images, or none is left without a label.
        """
        split = context.real()
        places = few_places(split, self.per_class, seed=self.seed, classes=context.dataset.classes)
        rest = torch.ones(len(split), dtype=torch.bool)
        if self.unlabelled == "rest":
            rest[places] = False
        if not rest.any():
            raise DataError(
                f"source.per_class={self.per_class} labels all {len(split)} training images, and none is left without "
                "a label: choose a smaller source.per_class, or source.unlabelled=all"
            )
        labelled = context.serve(
            split.images[places], split.labels[places], batch_size=self.batch_size, augment=self.augment
        )
        others = context.serve(split.images[rest], batch_size=self.unlabelled_batch_size, augment=self.augment)
        return StreamsLoader(labelled, others, batches=len(others))
