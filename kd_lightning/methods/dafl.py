"""DAFL: data-free learning of student networks (Chen et al., ICCV 2019, arXiv 1904.01186).

A generator stands in for the training data. The teacher judges its images: they should look like one
class (one-hot), excite the features (activation) and cover all classes evenly (information entropy).
In the same step the student imitates the teacher on the very images the generator was judged by.

Deviations (paper / authors' code / here):
    * entropy: natural logarithm / base 10 / natural by default, ``variant="code"`` for base 10. The code's
      weight 5 is 2.17 in nats; our presets state their weights in the unit of their variant.
    * activation: sum over features / mean over features / mean.
    * Images: the generator's standardised output is fed to the teacher as it is / likewise / it leaves
      the generator in data units and the teacher's own normalisation undoes that, which is the same.
    * Result: not stated / best test accuracy over all epochs / the last step.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_lightning.capture import capture
from kd_lightning.losses.image_prior import activation, information_entropy, one_hot
from kd_lightning.losses.response import kl
from kd_lightning.methods.base import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.networks import head_of
from kd_lightning.teacher.frozen import FrozenTeacher


class Dafl(Distiller):
    """One round: one joint step of generator and student on the same images.

    Args:
        generator: latents (N, latent) to images (N, C, H, W) in data units.
        optimizer: makes the student's optimiser.
        optimizer_g: makes the generator's optimiser.
        scheduler: schedule of the student's learning rate, stepped once an epoch.
        scheduler_g: the same for the generator.
        latent: length of z.
        batch_size: images a round, per rank.
        oh: weight of the one-hot loss (L_oh, eq. 3).
        act: weight of the activation loss (alpha, eq. 4).
        ie: weight of the information entropy loss (beta, eq. 5).
        variant: ``paper`` or ``code``, see the deviations above.
        **base: see :class:`Distiller`.
    """

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
        oh: float = 1.0,
        act: float = 0.1,
        ie: float = 5.0,
        variant: Literal["paper", "code"] = "paper",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.generator = generator
        self.make_optimizer, self.make_optimizer_g = optimizer, optimizer_g
        self.make_scheduler, self.make_scheduler_g = scheduler, scheduler_g
        self.latent, self.batch_size = latent, batch_size
        self.oh, self.act, self.ie = oh, act, ie
        self.entropy_log: Literal["e", "10"] = "e" if variant == "paper" else "10"

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """The teacher's gradients, and no data."""
        return {"teacher.gradients", "source.free"}

    def configure_optimizers(self) -> Any:
        """Student first, generator second."""
        return self.scheduled(
            (self.make_optimizer(self.student.parameters()), self.make_scheduler),
            (self.make_optimizer_g(self.generator.parameters()), self.make_scheduler_g),
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Images, the teacher's verdict on them, one step of each network."""
        opt_s, opt_g = self.opts()
        z = torch.randn(self.batch_size, self.latent, device=self.device, generator=self.rng)
        x = self.generator(z)
        features, t = self.judge(x)

        # Generator, eq. 6: L_oh + alpha L_a + beta L_ie
        loss_oh = self.oh * one_hot(t)
        loss_a = self.act * activation(features)
        loss_ie = self.ie * information_entropy(t, log=self.entropy_log)
        self.update(opt_g, loss_oh + loss_a + loss_ie)

        # Student, eq. 7: imitate on the same images, which its loss must not pull
        loss_kd = kl(self.student(x.detach()), t.detach())
        self.update(opt_s, loss_kd)

        self.record(kd=loss_kd, oh=loss_oh, ie=loss_ie, act=loss_a)
        self.show(x, t)

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's penultimate features (N, D) and logits (N, K), in one forward that gradients can cross."""
        assert isinstance(self.teacher, FrozenTeacher)
        head = head_of(self.teacher.net)
        with capture(self.teacher.net, inputs=(head,)) as taps:
            t = self.teacher(x)
        return taps[head], t

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """``n`` images (n, C, H, W) as the student was shown them: the generator in training mode."""
        z = torch.randn(n, self.latent, device=self.device, generator=self.rng)
        return self.generator(z)
