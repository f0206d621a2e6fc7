"""A conditional generator against a discriminator: what the GANs of this package share, and no paper is about."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.tasks import Classification
from kd_lightning.data.loader import Augmentation
from kd_lightning.distributed import collectives
from kd_lightning.methods.base.distiller import Distiller, LastBatch, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.base.protocols import WhiteTeacher


class ConditionalGan(Distiller):
    """Two networks that take turns; what is kept is ``generator``, a function of latents and labels.

    Args:
        generator: latents (N, latent) and labels (N,), int64 classes or floats in [0, 1], to images (N, C, H, W) in
            [0, 1].
        discriminator: images and labels to verdicts (N,), high for real ones.
        optimizer_d: makes the discriminator's optimiser.
        optimizer_g: makes the generator's optimiser.
        scheduler_d: schedule of the discriminator's learning rate, stepped once an epoch.
        scheduler_g: the same for the generator.
        latent: length of z.
        d_steps: steps of the discriminator for each of the generator; a batch is cut into as many.
        augment: what the discriminator sees of images, with gradients crossing; None for the images themselves.
        ema: decay of the average of the generator's weights, which is then what is kept; None keeps the weights.
        ema_from: round until which the average is the weights themselves.
        show_every: rounds between looks at what the kept generator makes.
        **base: see :class:`Distiller`.
    """

    trains_student = False
    generator_lr = "gan.method.optimizer_g.lr"
    shown = 100
    """Images of a look."""

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
        """The generator that learns."""
        return self.generator if self.ema is None else self.live

    def student_updates_per_round(self) -> int:
        """None."""
        return 0

    def configure_optimizers(self) -> Any:
        """Discriminator first, generator second."""
        learning = ([p for p in net.parameters() if p.requires_grad] for net in (self.discriminator, self.learner))
        return self.scheduled(
            (self.make_optimizer_d(next(learning)), self.make_scheduler_d),
            (self.make_optimizer_g(next(learning)), self.make_scheduler_g),
        )

    def generate(self, y: Tensor) -> Tensor:
        """An image of every label (N,), from fresh latents."""
        self.images_made += len(y) * collectives.world()
        return self.learner(self.noise(len(y), self.latent), y)

    def view(self, x: Tensor) -> Tensor:
        """What the discriminator sees of images (N, C, H, W), every image under its own change."""
        return x if self.augment is None else self.augment(x, self.rng)

    @torch.no_grad()
    def keep(self) -> None:
        """Move the kept generator towards the one that learns, and look at what it makes when it is time."""
        if self.ema is not None:
            average(self.generator, self.live, self.ema if self.rounds_done >= self.ema_from else 0.0)
        last = self.rounds_done + 1 == self.trainer.num_training_batches * (self.trainer.max_epochs or 1)
        if self.rounds_done % self.show_every == 0 or last:
            self.look()

    def look(self) -> None:
        """Let callbacks see images of the kept generator: labels evenly spread, the teacher's answer to each."""
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
        """Labels (n,) from the first to the last, as a generator takes them."""
        if isinstance(self.task, Classification):
            return torch.arange(n, device=self.device) * self.task.num_classes // n
        return torch.linspace(0, 1, n, device=self.device)

    def rank_state(self) -> dict[str, Any]:
        """What callbacks look at."""
        return {} if self.seen is None else {"seen": tuple(self.seen)}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        if "seen" in state:
            self.seen = LastBatch(*(tensor.to(self.device) for tensor in state["seen"]))


@torch.no_grad()
def average(kept: nn.Module, live: nn.Module, decay: float) -> None:
    """Weights and batch-norm statistics: kept = decay kept + (1 - decay) live; the rest is copied.

    The vectors of spectral norm are of length 1, which their averages would not be.
    """
    new = live.state_dict()
    for name, old in kept.state_dict().items():
        if old.is_floating_point() and not name.endswith(("._u", "._v")):
            old.lerp_(new[name], 1 - decay)
        else:
            old.copy_(new[name])
