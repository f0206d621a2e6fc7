"""Labelled images of one domain beside images without labels of another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch

from kd_lightning.data.dataset import Dataset
from kd_lightning.data.domains import moved_to
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.data.streams import StreamsLoader
from kd_lightning.errors import ConfigError, DataError
from kd_lightning.sources.context import Context
from kd_lightning.store.artifacts import Store


class TwoDomains:
    """Batches of the run's data with labels, and of ``target`` without; the run is then tested on ``target``.

    An epoch is a pass over the labelled images, and a method that does not take two streams sees only those. The labels
    of the target's training images are not read: neither by training nor by a choice of images, class by class.

    Args:
        target: function that loads the other domain: a node like that of a ``data`` group member, with
            ``_partial_: true``. All its training images are used: its ``val`` is set to 0.
        batch_size: images of each domain per batch and rank.
        images: number of the target's images to use, chosen at random; None for all.
        augment: applied to each batch of either domain, in this order.
        seed: of the choice of images.
    """

    offers = frozenset({"source.two_streams", "source.images", "source.labels"})
    needs = frozenset({"task.classification"})

    def __init__(
        self,
        *,
        target: Callable[..., Dataset],
        batch_size: int,
        images: int | None = None,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        self.target, self.batch_size, self.images = target, batch_size, images
        self.augment, self.seed = augment, seed

    def moved(self, dataset: Dataset, store: Store) -> Dataset:
        """The run's data with the target's images and its test in place of their own.

        Raises:
            ConfigError: ``target`` has already been called, or chooses training images by their labels.
            DataError: the target cannot be loaded, or does not fit, see :func:`moved_to`.
        """
        if not callable(self.target):
            raise ConfigError(
                "source.target is not a function but its result: set source.target._partial_=true beside its _target_"
            )
        taken = inspect.signature(self.target).parameters
        if "train" in taken and taken["train"].default is not None:
            raise ConfigError(
                f"source.target.train={taken['train'].default}: it is chosen by reading labels, class by class. "
                "Set source.target.train=null and source.images to the number of images"
            )
        given = {"val": 0} if "val" in taken else {}
        return moved_to(dataset, self.target(**given, **({"store": store} if "store" in taken else {})))

    def prepare(self, context: Context) -> StreamsLoader | TensorLoader:
        """A loader of both streams, or of the labelled one for a method that does not take two.

        Raises:
            DataError: the run's data have no second domain, or fewer images than asked for.
        """
        split, unlabelled = context.real(), context.dataset.unlabelled
        labelled = context.serve(split.images, split.labels, batch_size=self.batch_size, augment=self.augment)
        if "source.two_streams" not in context.needs:
            return labelled
        if unlabelled is None:
            raise DataError(
                "source=two_domains of a stage or a control: the run's own source has to be source=two_domains, for "
                "it brings the images of the second domain"
            )
        if self.images is not None:
            if not 0 < self.images <= len(unlabelled):
                raise DataError(
                    f"source.images={self.images}: the target has {len(unlabelled)} training images. Choose "
                    f"source.images={len(unlabelled)} or less"
                )
            order = torch.randperm(len(unlabelled), generator=torch.Generator().manual_seed(self.seed))
            unlabelled = unlabelled[order[: self.images].sort().values]
        other = context.serve(unlabelled, batch_size=self.batch_size, augment=self.augment)
        return StreamsLoader(labelled, other, batches=len(labelled))
