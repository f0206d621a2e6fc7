"""DeepInversion: dreaming to distill (Yin et al., CVPR 2020, arXiv 1912.08795).

Pixels are optimised until the teacher predicts the wanted class and the statistics entering its batch norms match
their running mean and variance; a total variation term keeps images smooth. The images form a pool on which the
student learns the teacher's answers (``Distill``, KL at T=3).

Deviations (paper / authors' code / here):
    * Result of the steps: the best images / the last, because "best" is kept by reference / the last.
    * Pixels: - / ImageNet code: clipped to the range of images after every step; CIFAR code: free / setting ``clip``.
    * Images: - / float, standardised / clipped at the end and rounded to 8 bits.
    * Jitter and flip: both / CIFAR code: a cyclic shift / both; the flip is a setting, because mirrored digits are
      not digits.
    * Hooks: - / registered again for every batch, never removed / attached only while a batch is optimised.
    * Student: - / not released / the maintainers' answers: from scratch, T=3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.errors import ConfigError
from kd_lightning.losses.batch_norm import BatchNormTap
from kd_lightning.losses.deep_inversion import inversion_step
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.context import Context
from kd_lightning.sources.pool import made_by, noise_on, obtain_pool, teacher_of


class DeepInversion:
    """A pool of inverted images, served with the classes they were optimised for.

    Args:
        images: total number, equally many of each class.
        batch_size: images per batch and rank, for the student.
        inverted: number optimised together; their joint statistics are compared with the batch norms'.
        steps: of Adam for each batch.
        lr: its learning rate, on standardised pixels.
        bn: weight of the batch-norm statistics (alpha_f).
        tv: weight of the total variation (alpha_tv); the norm grows with the square root of ``inverted``.
        l2: weight of the norm (alpha_l2).
        clip: whether pixels are clipped to the range of images at every step.
        jitter: largest shift in pixels.
        flip: mirror in every second step.
        augment: applied to each batch.
        seed: of classes, noise, shifts and flips.
    """

    offers = frozenset({"source.images", "source.index", "source.labels", "source.synthetic"})
    version = 1
    """Raised whenever its images would change."""
    needs = frozenset({"teacher.gradients", "teacher.batch_norm", "task.classification"})

    def __init__(
        self,
        *,
        images: int,
        batch_size: int,
        inverted: int = 256,
        steps: int = 2000,
        lr: float = 0.05,
        bn: float = 10.0,
        tv: float = 2.5e-5,
        l2: float = 3e-8,
        clip: bool = False,
        jitter: int = 2,
        flip: bool = True,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        self.images, self.batch_size, self.inverted = images, batch_size, inverted
        self.steps, self.lr = steps, lr
        self.bn, self.tv, self.l2 = bn, tv, l2
        self.clip, self.jitter, self.flip = clip, jitter, flip
        self.augment, self.seed = augment, seed

    def prepare(self, context: Context) -> TensorLoader:
        """The images, optimised now or read from the store.

        Raises:
            ConfigError: the teacher has no batch norm, or is not white-box.
        """
        net = teacher_of(context, "deep_inversion")
        try:
            BatchNormTap(net)
        except ValueError:
            raise ConfigError(
                f"source=deep_inversion reads batch-norm statistics, but {type(net.net).__name__} as it is set has "
                "none: set teacher.net.batch_norm=true if it has that setting, or choose another teacher, such as "
                "teacher=resnet34"
            ) from None
        shape, classes = context.dataset.image_shape, context.dataset.num_classes

        def make(number: int, random: np.random.Generator) -> dict[str, Tensor]:
            rows = torch.arange(number * self.inverted, min((number + 1) * self.inverted, self.images))
            labels = rows % classes
            u = torch.randn((len(rows), *shape), device=context.device, generator=noise_on(context, random))
            return {"images": self.invert(net, u, labels.to(context.device), random), "labels": labels}

        config = {k: v for k, v in vars(self).items() if k not in ("augment", "batch_size")}
        config |= {
            "source": "deep_inversion",
            "shape": shape,
            "classes": classes,
            "version": self.version,
            **made_by(self),
        }
        pool = obtain_pool(context, config, math.ceil(self.images / self.inverted), make)
        return context.serve(pool["images"], pool["labels"], batch_size=self.batch_size, augment=self.augment)

    def invert(self, net: Normalized, u: Tensor, y: Tensor, random: np.random.Generator) -> Tensor:
        """Optimise standardised noise u (N, C, H, W) into images in data units of the classes y (N,)."""
        u = u.requires_grad_()
        adam = torch.optim.Adam([u], lr=self.lr)
        step = partial(inversion_step, bn=self.bn, tv=self.tv, l2=self.l2, clip=self.clip)
        for _ in range(self.steps):
            shift = random.integers(-self.jitter, self.jitter + 1, 2).tolist()
            mirrored = self.flip and random.random() < 0.5
            step(net, u, y, adam, shift=shift, mirrored=mirrored)
        return (u * net.std + net.mean).detach()
