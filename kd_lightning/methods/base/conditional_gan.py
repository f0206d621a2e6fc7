"""Base of the conditional GANs: a generator trained against a discriminator."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.tasks import Classification
from kd_lightning.data.loader import Augmentation
from kd_lightning.distributed import collectives
from kd_lightning.methods.base.averages import average
from kd_lightning.methods.base.distiller import Distiller, LastBatch, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.base.protocols import WhiteTeacher


class ConditionalGan(Distiller):
    """Generator and discriminator trained in turns; the fit keeps ``generator``, a function of latents and labels.

    Args:
        generator: latents (N, latent) and labels (N,), int64 classes or floats in [0, 1], to images (N, C, H, W) in
            [0, 1].
        discriminator: images and labels to scores (N,), high for real ones.
        optimizer_d: makes the discriminator's optimiser.
        optimizer_g: makes the generator's optimiser.
        scheduler_d: schedule of the discriminator's learning rate, stepped once an epoch.
        scheduler_g: the same for the generator.
        latent: length of z.
        d_steps: steps of the discriminator for each of the generator; a batch is split into as many parts.
        augment: differentiable augmentation of the discriminator's input; None for none.
        ema: decay of the moving average of the generator's weights, which is then kept; None keeps the weights.
        ema_from: round in which averaging starts; before it the weights are copied.
        show_every: rounds between two batches of the kept generator's images for callbacks.
        **base: see :class:`Distiller`.
    """

    trains_student = False
    generator_lr = "gan.method.optimizer_g.lr"
    shown = 100
    """Images shown to callbacks at a time."""

    def __init__(
        self,
        *,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizer_d: OptimizerFactory,
        optimizer_g: OptimizerFactory,
        scheduler_d: SchedulerFactory | None = None,
        scheduler_g: SchedulerFactory | None = None,
        latent: int = 128,
        d_steps: int = 1,
        augment: Augmentation | None = None,
        ema: float | None = None,
        ema_from: int = 0,
        show_every: int = 200,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.discriminator = discriminator
        self.generator = generator
        if ema is not None:
            self.live = generator
            self.generator = copy.deepcopy(generator).requires_grad_(False)
        self.make_optimizer_d, self.make_optimizer_g = optimizer_d, optimizer_g
        self.make_scheduler_d, self.make_scheduler_g = scheduler_d, scheduler_g
        self.latent, self.d_steps, self.augment = latent, d_steps, augment
        self.ema, self.ema_from, self.show_every = ema, ema_from, show_every

    @property
    def learner(self) -> nn.Module:
        """The generator that is trained."""
        return self.generator if self.ema is None else self.live

    def student_updates_per_round(self) -> int:
        """0: the student is not trained."""
        return 0

    def configure_optimizers(self) -> Any:
        """Discriminator first, generator second."""
        learning = ([p for p in net.parameters() if p.requires_grad] for net in (self.discriminator, self.learner))
        return self.scheduled(
            (self.make_optimizer_d(next(learning)), self.make_scheduler_d),
            (self.make_optimizer_g(next(learning)), self.make_scheduler_g),
        )

    def generate(self, y: Tensor) -> Tensor:
        """Images (N, C, H, W) of labels (N,), from fresh latents."""
        self.images_made += len(y) * collectives.world()
        return self.learner(self.noise(len(y), self.latent), y)

    def view(self, x: Tensor) -> Tensor:
        """Augment images (N, C, H, W) for the discriminator, each independently."""
        return x if self.augment is None else self.augment(x, self.rng)

    @torch.no_grad()
    def keep(self) -> None:
        """Update the kept generator; show its images every ``show_every`` rounds and in the last round."""
        if self.ema is not None:
            average(self.generator, self.live, self.ema if self.rounds_done >= self.ema_from else 0.0)
        last = self.rounds_done + 1 == self.trainer.num_training_batches * (self.trainer.max_epochs or 1)
        if self.rounds_done % self.show_every == 0 or last:
            self.look()

    def look(self) -> None:
        """Show callbacks images of the kept generator for evenly spaced labels, with the teacher's answers."""
        training, n = self.generator.training, self.shown
        y = self.spread(n)
        x = self.generator.eval()(self.noise(n, self.latent), y)
        self.generator.train(training)
        if isinstance(self.teacher, WhiteTeacher):
            answers = self.white.net(x)
        elif isinstance(self.task, Classification):
            answers = 10 * torch.nn.functional.one_hot(y, self.task.num_classes).float()
        else:
            answers = y[:, None]
        self.seen = LastBatch(x, answers)

    def spread(self, n: int) -> Tensor:
        """Evenly spaced labels (n,): int64 classes, or floats in [0, 1] for regression."""
        if isinstance(self.task, Classification):
            return torch.arange(n, device=self.device) * self.task.num_classes // n
        return torch.linspace(0, 1, n, device=self.device)

    def rank_state(self) -> dict[str, Any]:
        """The images last shown to callbacks."""
        return {} if self.seen is None else {"seen": tuple(self.seen)}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        if "seen" in state:
            self.seen = LastBatch(*(tensor.to(self.device) for tensor in state["seen"]))
