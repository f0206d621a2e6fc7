"""The images of another data set in place of the run's own, which is still used for evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kd_lightning.data.dataset import Dataset, fit_to
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.data.structured_images import CHUNK, cropped, different, masks, mixed, standardised
from kd_lightning.errors import ConfigError, DataError
from kd_lightning.sources.context import Context
from kd_lightning.sources.few_shot_queried import made_and_asked, pixels
from kd_lightning.sources.queried_once import require


class Other:
    """Every training image of another data set with its label; or images cut out of them, which the teacher answers.

    For the upper bound of a biased data set, the same one with ``unbiased: true``; for another domain, its data set. It
    is not checked whether its training images are among the run's test images: the same base, split and seed keep them
    apart.

    With ``images`` it is for photographs of anything, of any size and whatever their labels: that many different parts
    of them, or mixes of two such parts, made once from ``seed``. The teacher is asked once about each.

    Args:
        load: function that loads it: a node like that of a ``data`` group member, with ``_partial_: true``.
        batch_size: images per batch and rank.
        images: number of images to make and ask about; None takes the training images with their labels.
        mix: whether each of them is put together of two, along random shapes.
        standardise: whether each of them gets the mean and standard deviation of the run's data.
        augment: applied to each batch in this order.
        seed: of the images made.
    """

    offers = frozenset({"source.images", "source.index", "source.labels", "source.answers"})
    version = 1
    quick = True

    def __init__(
        self,
        *,
        load: Callable[..., Dataset],
        batch_size: int,
        images: int | None = None,
        mix: bool = False,
        standardise: bool = False,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        if images is None and (mix or standardise):
            raise ConfigError(
                "source.mix and source.standardise are for images that are made and asked about: say how many with "
                "source.images=20000"
            )
        self.load, self.batch_size, self.augment, self.seed = load, batch_size, augment, seed
        self.images, self.mix, self.standardise = images, mix, standardise

    def prepare(self, context: Context) -> TensorLoader:
        """A loader of the other images; uses no image of the run's own data.

        Raises:
            ConfigError: ``load`` has already been called; or images are made, and the method trains on labels.
            DataError: the data set cannot be loaded, has no training images, or images or labels of another kind.
            BudgetExceeded: ``teacher.budget`` is smaller than ``images``; nothing is made or asked.
        """
        if not callable(self.load):
            raise ConfigError(
                "source.load is not a function but its result: set source.load._partial_=true beside its _target_"
            )
        keeps = "store" in inspect.signature(self.load).parameters
        other = self.load(**({"store": context.store} if keeps else {}))
        if other.train is None:
            raise DataError(f"source.load: {other.name} has no training images. Choose another set")
        if self.images is not None:
            return self._asked(context, other.train.images)
        refuse_another_kind(other, context.dataset)
        if "source.answers" in context.needs:
            raise ConfigError(
                "this method trains on the teacher's answers, and source=other asks only about images that it makes: "
                "say how many with source.images=20000"
            )
        return context.serve(other.train.images, other.train.labels, batch_size=self.batch_size, augment=self.augment)

    def _asked(self, context: Context, photographs: Tensor) -> TensorLoader:
        assert self.images is not None
        if "source.labels" in context.needs:
            raise ConfigError(
                "this method trains on labels, but images made of another set have none: set method.label=0, or take "
                "them as they are with source.images=null source.mix=false source.standardise=false"
            )
        require(context, self.images)
        made_of = {
            "photographs": pixels(photographs),
            "mix": self.mix,
            "like": [context.mean, context.std] if self.standardise else None,
            "images": self.images,
            "seed": self.seed,
            "version": self.version,
        }
        make = partial(self.made, context, photographs)
        return made_and_asked(context, made_of, make, batch_size=self.batch_size, augment=self.augment)

    def made(self, context: Context, photographs: Tensor) -> Tensor:
        """Images uint8 (images, C, H, W) made of photographs uint8 (M, ., ., .); smaller ones are enlarged before.

        Raises:
            ConfigError: too few different ones can be made.
        """
        channels, height, width = context.dataset.image_shape
        size = max(height, photographs.shape[2]), max(width, photographs.shape[3])
        photographs = fit_to(photographs, size=size, channels=channels)

        def parts(rng: torch.Generator) -> Tensor:
            chosen = torch.randint(len(photographs), (CHUNK,), generator=rng)
            return cropped(photographs[chosen], height, width, rng).float() / 255

        def chunk(rng: torch.Generator) -> Tensor:
            x = parts(rng)
            if self.mix:
                x = mixed(x, parts(rng), masks(CHUNK, height, width, rng))
            return standardised(x, context.mean, context.std) if self.standardise else x

        assert self.images is not None
        return different(self.images, chunk, self.seed)


def refuse_another_kind(other: Dataset, own: Dataset) -> None:
    """Refuse a set whose images or labels cannot stand in for those of the run's data.

    Raises:
        DataError: says how they differ.
    """
    if other.image_shape != own.image_shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (other.image_shape, own.image_shape))
        raise DataError(
            f"source.load: {other.name} has images of {theirs}, but data={own.name} of {ours}. Set "
            "source.load.size=${data.size} and, where it has them, source.load.channels=${data.channels}"
        )
    theirs, ours = (" ".join(f"{k}={v}" for k, v in of.task.described().items() if k != "kind") for of in (other, own))
    if theirs != ours:
        raise DataError(
            f"source.load: the labels of {other.name} have {theirs}, but those of data={own.name} have {ours}. "
            "Choose a set with the same"
        )
