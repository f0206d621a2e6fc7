"""DFAD: data-free adversarial distillation (Fang et al. 2019, arXiv 1912.11006).

Student and generator are trained adversarially on the distance between the student's and the teacher's
logits: the student minimises it on the generator's images, the generator searches for images where it is
large. This lowers an upper bound of the discrepancy on real data, without any prior on images.

Deviations (paper / authors' code / here):
    * Schedules step before the first epoch in the code's CIFAR and MNIST scripts; here after each epoch.
    * Gradients: the code leaves the graph through the generator in student steps and computes weight gradients of
      teacher and student that nobody uses; here they are not computed, the numbers are the same.
    * The student stays in training mode while the generator learns, as in the code: its batch-norm running
      statistics see those images too.
    * Result: mean over runs / best test accuracy over all epochs / the last step.
"""

from __future__ import annotations

from typing import Any

import torch

from kd_lightning.losses.response import l1_logits
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.generator_pair import GeneratorPair


class Dfad(GeneratorPair):
    """One round: ``student_steps`` imitation steps on fresh images, then one generator step.

    Args:
        student_steps: student steps for each of the generator's, k.
        log_distance: the generator maximises ln(1 + L) in place of L, for dense prediction.
        **generative: see :class:`GeneratorPair`.
    """

    def __init__(self, *, student_steps: int = 5, log_distance: bool = False, **generative: Any) -> None:
        super().__init__(**generative)
        self.student_steps, self.log_distance = student_steps, log_distance

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """As every method of a generator; classes of images or of pixels."""
        return super().needs(**settings) | {"task.segmentation"}

    def student_updates_per_round(self) -> int:
        """``student_steps``, k."""
        return self.student_steps

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Imitation stage, then generation stage."""
        assert self.teacher is not None
        opt_s, opt_g = self.opts()

        # Imitation stage: the student minimises the distance on fresh images
        for _ in range(self.student_steps):
            with torch.no_grad():
                x = self.draw(self.batch_size)
                t = self.teacher(x)
            loss_s = l1_logits(self.student(x), t)
            self.update(opt_s, loss_s)
            self.show(x, t)

        # Generation stage: the generator maximises it; gradients pass through both networks and change neither
        with frozen(self.student):
            x = self.generate(self.batch_size)
            t = self.teacher(x)
            distance = self.gathered(l1_logits(self.student(x), t)).mean()
            self.update(opt_g, -torch.log1p(distance) if self.log_distance else -distance)

        self.record(l1=loss_s, distance=distance)
        self.show(x, t)
