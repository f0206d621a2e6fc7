"""DFQ: data-free network quantization with adversarial knowledge distillation (Choi et al., CVPR-W 2020).

The generator searches for images on which student and teacher disagree, but which stay close to the training
data: they have to match the running statistics of the teacher's batch norms, be classified with certainty, and
cover all classes. The column "DFQ" in later papers is the version of DataFree (Fang et al.), which this file
follows.

Deviations (paper / DataFree's code / here):
    * Quantisation: the student is the teacher at low precision / any network / any network.
    * Batch-norm term: KL between Gaussians per channel / norms of the differences, as DeepInversion / norms.
    * Networks: several generators and students / one of each / one of each.
    * Student while the generator learns: - / training or evaluation mode, by the repository's age / evaluation
      mode: its batch norms do not move and gradients cross them.
    * Generator while the student learns: - / evaluation mode / evaluation mode: its running statistics.
    * Teacher: - / hooks stay for good, weight gradients are computed / neither; the numbers are the same.
    * Result: - / best test accuracy over all epochs / the last step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.image_prior import information_entropy, one_hot
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.generator_pair import GeneratorPair
from kd_lightning.methods.base.statistics import over_ranks


class Dfq(GeneratorPair):
    """One round: one generator step, then ``student_steps`` student steps, each on fresh images.

    Args:
        student_steps: student steps a round.
        adv: weight of -KL(T || S), the adversarial term.
        bn: weight of the batch-norm statistics.
        oh: weight of the one-hot loss, low entropy of each answer.
        balance: weight of minus the entropy of the mean answer.
        **generative: see :class:`GeneratorPair`.
    """

    version = 2

    def __init__(
        self,
        *,
        student_steps: int = 10,
        adv: float = 1.0,
        bn: float = 1.0,
        oh: float = 1.0,
        balance: float = 20.0,
        **generative: Any,
    ) -> None:
        super().__init__(**generative)
        self.student_steps = student_steps
        self.adv, self.bn, self.oh, self.balance = adv, bn, oh, balance

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """A teacher with batch norm, its gradients, and no data."""
        return super().needs(**settings) | {"teacher.batch_norm"}

    def student_updates_per_round(self) -> int:
        """``student_steps``."""
        return self.student_steps

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One generator step, then the student's steps."""
        opt_s, opt_g = self.opts()

        # Generator: disagreement, batch-norm statistics, certainty and class balance
        with frozen(self.student, in_eval=True):
            x = self.generate(self.batch_size)
            with BatchNormTap(self.white.net) as tap:
                t = self.white(x)
            statistics = over_ranks(tap.statistics) if self.global_batch_losses else tap.statistics
            losses = {
                "adv": -self.adv * kl(self.student(x), t),
                "bn": self.bn * batch_norm_statistics(statistics, tap.layers),
                "oh": self.oh * one_hot(t),
                "balance": self.balance * information_entropy(self.gathered(t)),
            }
            self.update(opt_g, torch.stack(list(losses.values())).sum())
        self.show(x, t)

        # Student: imitate on fresh images
        for _ in range(self.student_steps):
            with torch.no_grad():
                x = self.draw(self.batch_size)
                t = self.white(x)
            loss_kd = kl(self.student(x), t)
            self.update(opt_s, loss_kd)
            self.show(x, t)

        self.record(kd=loss_kd, **losses)

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """``n`` images (n, C, H, W) as the student sees them: the generator in evaluation mode."""
        generators = [net for net in (self.generator, self.averaged) if net is not None]
        for net in generators:
            net.eval()
        x = super().draw(n)
        for net in generators:
            net.train()
        return x
