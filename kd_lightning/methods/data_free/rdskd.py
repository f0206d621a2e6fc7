"""RDSKD: robustness and diversity seeking data-free distillation (Han et al., ICASSP 2021, arXiv 2011.03749).

Two phases. First a generator learns images that the teacher classifies with certainty, of every class, and
different from each other; authenticity and class diversity conflict without real data, so the loss is not their
weighted sum but the sum of exp(increment since an anchor), which weighs a term more once it gets worse. Then the
generator is frozen and the student imitates the teacher on its images. This file is phase 1; phase 2 is
``Distill`` with KL at T=10 on ``source=generated``, and conf/method/rdskd.yaml combines the two.

Deviations (paper / authors' code / here). The paper's formulas were not at hand; the code counts as the paper.
    * increment: since the iteration before, by its name / since the second step of the epoch, 0 at the start /
      as the code, with period and place as settings; it is cut at 20 with its gradient kept, where exp would
      soon overflow.
    * diversity: - / 1 / (||dx|| / ||dp|| + 1e-20), NaN where the teacher answers alike / ||dp|| / ||dx||, the same.
    * Teacher: - / a forward for each half of the batch / one for both, the same in eval mode.
    * ``aggregate="sum"``, the plain sum of the three, is our ablation of the exponential penalty.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from kd_lightning.losses.image_prior import information_entropy, one_hot
from kd_lightning.losses.teacher_ratio import teacher_ratio_diversity
from kd_lightning.losses.weighting import ExponentialIncrement
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory


class RdskdGenerator(Distiller):
    """One round: one step of the generator. The student is not trained.

    Args:
        generator: latents (N, latent) to images (N, C, H, W) in data units.
        optimizer: makes the generator's optimiser.
        scheduler: schedule of its learning rate, stepped once an epoch.
        latent: length of z.
        batch_size: images a round, per rank; its halves make the pairs, so it is even.
        aggregate: ``exp`` for the paper's penalty, ``sum`` for its ablation.
        anchor_every: rounds between two moves of the anchors L*.
        anchor_at: the round of each such block, from 0, after whose loss they move.
        **base: see :class:`Distiller`.
    """

    trains_student = False
    generator_lr = "rdskd.method.optimizer.lr"

    def __init__(
        self,
        *,
        generator: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        latent: int = 100,
        batch_size: int = 512,
        aggregate: Literal["exp", "sum"] = "exp",
        anchor_every: int = 120,
        anchor_at: int = 1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if batch_size % 2:
            raise ValueError(f"RDSKD pairs the halves of a batch: batch_size must be even, got {batch_size}")
        self.generator = generator
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.latent, self.batch_size = latent, batch_size
        self.aggregate = aggregate
        self.increment = ExponentialIncrement(("oh", "ie"), anchor_every=anchor_every, anchor_at=anchor_at)

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """The teacher's gradients, and no data."""
        return {"teacher.gradients", "source.free", "task.classification"}

    def student_updates_per_round(self) -> int:
        """0: the student is not trained."""
        return 0

    def configure_optimizers(self) -> Any:
        """The generator's optimiser and schedule."""
        return self.scheduled((self.make_optimizer(self.generator.parameters()), self.make_scheduler))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One generator step with three losses on pairs of images."""
        assert self.teacher is not None
        x = self.generator(self.noise(self.batch_size, self.latent))
        t = self.white(x)

        every_t = self.gathered(t)
        conflicting = {
            "oh": one_hot(every_t),  # L_OH, authenticity: the teacher is certain of a class
            "ie": information_entropy(every_t),  # L_IE, class diversity: each class equally often
        }
        loss_ds = self.diversity(self.gathered(x), every_t)  # L_DS, inter-sample diversity

        # L_G = exp(L_OH - L_OH*) + exp(L_IE - L_IE*) + L_DS
        if self.aggregate == "exp":
            loss = self.increment(conflicting, self.rounds_done) + loss_ds
        else:
            loss = conflicting["oh"] + conflicting["ie"] + loss_ds
        self.update(self.opts()[0], loss)

        self.record(loss=loss, **conflicting, ds=loss_ds)
        self.show(x, t)

    def diversity(self, x: Tensor, t: Tensor) -> Tensor:
        """||p2 - p1|| / ||x2 - x1|| between the halves of the batch, pixels standardised as the code's are."""
        x1, x2 = self.white.standardise(x).chunk(2)
        p1, p2 = t.float().softmax(1).chunk(2)
        return teacher_ratio_diversity(x1, x2, p1, p2)
