"""Base of the methods with a student and a generator: two networks, two optimisers, random latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory


class GeneratorPair(Distiller):
    """Student and generator of a data-free method; the method's own file defines how the two are trained.

    Args:
        generator: latents (N, latent) to images (N, C, H, W) in data units.
        optimizer: makes the student's optimiser.
        optimizer_g: makes the generator's optimiser.
        scheduler: schedule of the student's learning rate, stepped once an epoch.
        scheduler_g: the same for the generator.
        latent: length of z.
        batch_size: images a step, per rank.
        **base: see :class:`Distiller`.
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
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.generator = generator
        self.make_optimizer, self.make_optimizer_g = optimizer, optimizer_g
        self.make_scheduler, self.make_scheduler_g = scheduler, scheduler_g
        self.latent, self.batch_size = latent, batch_size

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

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """``n`` images (n, C, H, W) as the student sees them: the generator in training mode."""
        return self.generate(n)
