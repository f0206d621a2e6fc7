"""The training images of another data set in place of the run's own, which is still used for evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from kd_lightning.data.dataset import Dataset
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.errors import ConfigError, DataError
from kd_lightning.sources.context import Context


class Other:
    """Every training image of another data set with its label, shuffled and augmented.

    For the upper bound of a biased data set, the same one with ``unbiased: true``; for another domain, its data set. It
    is not checked whether its training images are among the run's test images: the same base, split and seed keep them
    apart.

    Args:
        load: function that loads it: a node like that of a ``data`` group member, with ``_partial_: true``.
        batch_size: images per batch and rank.
        augment: applied to each batch in this order.
    """

    offers = frozenset({"source.images", "source.index", "source.labels"})

    def __init__(self, *, load: Callable[..., Dataset], batch_size: int, augment: Sequence[Augmentation] = ()) -> None:
        self.load, self.batch_size, self.augment = load, batch_size, augment

    def prepare(self, context: Context) -> TensorLoader:
        """A loader of the other images; uses no image of the run's own data.

        Raises:
            ConfigError: ``load`` has already been called.
            DataError: the data set cannot be loaded, has no training images, or images or labels of another kind.
        """
        if not callable(self.load):
            raise ConfigError(
                "source.load is not a function but its result: set source.load._partial_=true beside its _target_"
            )
        keeps = "store" in inspect.signature(self.load).parameters
        other, own = self.load(**({"store": context.store} if keeps else {})), context.dataset
        if other.train is None:
            raise DataError(f"source.load: {other.name} has no training images. Choose another set")
        if other.image_shape != own.image_shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (other.image_shape, own.image_shape))
            raise DataError(
                f"source.load: {other.name} has images of {theirs}, but data={own.name} of {ours}. Set "
                "source.load.size=${data.size} and, where it has them, source.load.channels=${data.channels}"
            )
        theirs, ours = (
            " ".join(f"{k}={v}" for k, v in of.task.described().items() if k != "kind") for of in (other, own)
        )
        if theirs != ours:
            raise DataError(
                f"source.load: the labels of {other.name} have {theirs}, but those of data={own.name} have {ours}. "
                "Choose a set with the same"
            )
        return context.serve(other.train.images, other.train.labels, batch_size=self.batch_size, augment=self.augment)
