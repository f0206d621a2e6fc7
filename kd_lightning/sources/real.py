"""Real images with their labels: all of them, or a few per class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_lightning.data.dataset import Split
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.errors import DataError
from kd_lightning.sources.context import Context


class Real:
    """Every training image, shuffled and augmented.

    Args:
        batch_size: images per batch and rank.
        augment: applied to each batch in this order.
    """

    needs = frozenset({"task.multi_label"})  # takes it
    offers = frozenset({"source.images", "source.index", "source.labels"})

    def __init__(self, *, batch_size: int, augment: Sequence[Augmentation] = ()) -> None:
        self.batch_size, self.augment = batch_size, augment

    def prepare(self, context: Context) -> TensorLoader:
        """A loader of the images, with labels where there are any."""
        split = context.real(labels="source.labels" in context.needs)
        return context.serve(split.images, split.labels, batch_size=self.batch_size, augment=self.augment)


class FewShot(Real):
    """The first ``per_class`` images of each class in a random order.

    Args:
        per_class: images of each class.
        batch_size: images per batch and rank.
        augment: applied to each batch in this order.
        seed: of the choice.
    """

    needs = frozenset({"task.classification"})

    def __init__(self, *, per_class: int, batch_size: int, augment: Sequence[Augmentation] = (), seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, augment=augment)
        self.per_class, self.seed = per_class, seed

    def prepare(self, context: Context) -> TensorLoader:
        """A loader of these images.

        Raises:
            DataError: a class has too few images.
        """
        split = few(context.real(), self.per_class, seed=self.seed, classes=context.dataset.classes)
        return context.serve(split.images, split.labels, batch_size=self.batch_size, augment=self.augment)


def few(split: Split, per_class: int, *, seed: int, classes: Sequence[str]) -> Split:
    """The images and labels at :func:`few_places`."""
    index = few_places(split, per_class, seed=seed, classes=classes)
    return Split(split.images[index], split.labels[index])


def few_places(split: Split, per_class: int, *, seed: int, classes: Sequence[str]) -> Tensor:
    """Indices of ``per_class`` images of every class, determined by the seed; a larger ``per_class`` adds to a smaller.

    Raises:
        DataError: names the class that has fewer, and its number of images.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label, name in enumerate(classes):
        members = (split.labels == label).nonzero().squeeze(1)
        if not len(members):
            raise DataError(
                f"class {name} has no training image, but source.per_class={per_class} of each class are wanted: leave "
                "the class out of the data, or add images of it"
            )
        if len(members) < per_class:
            raise DataError(
                f"source.per_class={per_class}, but class {name} has {len(members)} training images. "
                f"Choose source.per_class={len(members)} or less"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(chosen)
