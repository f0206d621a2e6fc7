"""Base of the methods with a student and a generator: two networks, two optimisers, random latents."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from kd_lightning.errors import ConfigError
from kd_lightning.methods.base.averages import average
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory


class GeneratorPair(Distiller):
    """Student and generator of a data-free method; the method's own file defines how the two are trained.

    A generator that learns against the student leaves old kinds of images behind, and the student forgets them. With
    ``ema`` a moving average of the generator's weights, which changes slowly, makes a share of the student's images:
    MAD (Do et al., NeurIPS 2022, arXiv 2209.10359). The generator itself learns as without it.

    Args:
        generator: latents (N, latent) to images (N, C, H, W) in data units.
        optimizer: makes the student's optimiser.
        optimizer_g: makes the generator's optimiser.
        scheduler: schedule of the student's learning rate, stepped once an epoch.
        scheduler_g: the same for the generator.
        latent: length of z.
        batch_size: images a step, per rank.
        ema: decay of the average, which follows every step of the generator; None keeps none.
        ema_share: the share of the student's images that come from it, rounded to whole images, below 1.
        **base: see :class:`Distiller`.

    Raises:
        ConfigError: ``ema`` or ``ema_share`` is outside its range.
    """

    generator_lr = "method.optimizer_g.lr"

    def __init__(
        self,
        *,
        generator: nn.Module,
        optimizer: OptimizerFactory,
        optimizer_g: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        scheduler_g: SchedulerFactory | None = None,
        latent: int = 100,
        batch_size: int = 512,
        ema: float | None = None,
        ema_share: float = 0.5,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.generator = generator
        self.make_optimizer, self.make_optimizer_g = optimizer, optimizer_g
        self.make_scheduler, self.make_scheduler_g = scheduler, scheduler_g
        self.latent, self.batch_size = latent, batch_size
        if ema is not None and not 0 <= ema < 1:
            raise ConfigError(f"method.ema={ema}: expected a decay from 0 to below 1, such as 0.95, or null")
        if not 0 <= ema_share < 1:
            raise ConfigError(f"method.ema_share={ema_share}: expected a share from 0 to below 1, such as 0.5")
        self.ema, self.ema_share = ema, ema_share
        self.averaged = None if ema is None else copy.deepcopy(generator).requires_grad_(False)

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """The teacher's gradients, its classes, and no data."""
        return {"teacher.gradients", "source.free", "task.classification"}

    def configure_optimizers(self) -> Any:
        """Student first, generator second."""
        return self.scheduled(
            (self.make_optimizer(self.student.parameters()), self.make_scheduler),
            (self.make_optimizer_g(self.generator.parameters()), self.make_scheduler_g),
        )

    def latents(self, n: int) -> Tensor:
        """Z ~ N(0, I), (n, latent)."""
        return self.noise(n, self.latent)

    def generate(self, n: int) -> Tensor:
        """``n`` images (n, C, H, W) of the generator, with gradients to its weights."""
        return self.generator(self.latents(n))

    def update(self, opt: LightningOptimizer, loss: Tensor) -> None:
        """Zero the gradients, backpropagate ``loss``, step; after the generator's step its average follows."""
        super().update(opt, loss)
        if self.ema is not None and self.averaged is not None and opt is self.opts()[1]:
            average(self.averaged, self.generator, self.ema)

    def of_average(self, z: Tensor) -> Tensor:
        """Those latents (N, latent) of which the student sees the average's images: the last ones, (M, latent)."""
        share = 0.0 if self.averaged is None else self.ema_share
        return z[len(z) - round(share * len(z)) :]

    @torch.no_grad()
    def to_study(self, z: Tensor) -> Tensor:
        """Images (N, C, H, W) of latents (N, latent) for the student, ``ema_share`` of them the average's."""
        old = self.of_average(z)
        if self.averaged is None or not len(old):
            return self.generator(z)
        return torch.cat([self.generator(z[: len(z) - len(old)]), self.averaged(old)])

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """``n`` images (n, C, H, W) as the student sees them: the generator in training mode."""
        return self.to_study(self.latents(n))
