"""Structured noise about which the teacher is asked once: no data, and a teacher that may only answer.

The synthesis step of DIP-KD (arXiv 2604.25794, 2026). An image is a sum of noise of all scales, turned and bent; two of
them, or one and a single colour, are put together along random shapes. Nothing is learned and no question is spent on
making them.

Deviations (paper / - / here):
    * Standardised: no / - / every image gets the mean and the standard deviation of the data (``data.mean`` and
      ``data.std``), which is knowledge of the data; ``standardise=false`` is the paper.
    * Diverging filter: printed with its branches exchanged / - / as its own conditions say.
    * Number of iterations: until the mask changes by less than 0.01 / - / ``iterations``.
    * Enlargement, strength of the elastic transformation, blur, share of single colours: not told / - / the settings.
    * Classes: balanced by rejecting answered images / - / as they come, since rejected images were paid for, too.
    * The phases that follow, Primer and Contrast: not here; answers train the student, by ``method=kd``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.data.structured_images import priors
from kd_lightning.errors import ConfigError
from kd_lightning.sources.context import Context
from kd_lightning.sources.few_shot_queried import made_and_asked
from kd_lightning.sources.queried_once import require


class ImagePriors:
    """``images`` structured random images with the teacher's answers, each asked about once, at any access.

    They depend on ``seed``, the size of the data's images and the settings, not on the seed of the fit; fewer of them
    are the first of more, so a larger pool pays only for the rest.

    Args:
        images: their number.
        batch_size: images per batch and rank.
        coarsest: d of the coarsest noise, 2^d x 2^d values; that of the image's own pixels leaves plain noise.
        warp: whether to turn and bend the noise.
        degrees: largest angle of turning.
        elastic: strength of bending, in pixels.
        smoothness: standard deviation of the bending's blur, in pixels.
        cut: whether to put two images together.
        mono: share of single colours among what is put together.
        blur: standard deviation of the shapes' blur, in pixels; its kernel has 5 values.
        iterations: times that the shapes are blurred and driven apart.
        standardise: whether each image gets the mean and deviation of the data; false is the paper.
        augment: applied to each batch; the target stays the answer to the original image.
        seed: of the images.
    """

    offers = frozenset({"source.images", "source.index", "source.answers", "source.synthetic"})
    needs = frozenset({"teacher", "task.classification"})
    version = 1
    quick = True
    """Preparing takes seconds and decides what is asked, so a plan does it."""

    def __init__(
        self,
        *,
        images: int,
        batch_size: int,
        coarsest: int = 0,
        warp: bool = True,
        degrees: float = 45.0,
        elastic: float = 50.0,
        smoothness: float = 5.0,
        cut: bool = True,
        mono: float = 0.5,
        blur: float = 1.5,
        iterations: int = 10,
        standardise: bool = True,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        if images < 1:
            raise ConfigError(f"source.images={images}: expected the number of images to ask about, 1 or more")
        self.images, self.batch_size, self.augment, self.seed = images, batch_size, augment, seed
        self.settings: dict[str, Any] = {
            "coarsest": coarsest,
            "warp": warp,
            "degrees": degrees,
            "elastic": elastic,
            "smoothness": smoothness,
            "cut": cut,
            "mono": mono,
            "blur": blur,
            "iterations": iterations,
            "standardise": standardise,
        }

    def prepare(self, context: Context) -> TensorLoader:
        """Make and ask, or read earlier images and answers; raises what :func:`ask` does.

        Raises:
            BudgetExceeded: ``teacher.budget`` is smaller than the number of images; none is made.
            ConfigError: the settings make too few different images.
        """
        require(context, self.images)
        made_of = {
            "priors": self.settings,
            "like": [context.mean, context.std] if self.settings["standardise"] else None,
            "images": self.images,
            "seed": self.seed,
            "version": self.version,
        }
        make = partial(self.made, context)
        return made_and_asked(context, made_of, make, batch_size=self.batch_size, augment=self.augment)

    def made(self, context: Context) -> Tensor:
        """The images, uint8 (images, C, H, W)."""
        shape, mean, std = context.dataset.image_shape, context.mean, context.std
        return priors(self.images, shape, mean=mean, std=std, seed=self.seed, **self.settings)
