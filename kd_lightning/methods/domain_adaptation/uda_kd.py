"""Joint progressive distillation and unsupervised domain adaptation (Nguyen-Meidine et al., arXiv 2005.07839, 2020).

A compact network adapts badly to a domain without labels. So a copy of the large teacher is adapted, and the student
imitates it on both domains while that goes on. Within an epoch the two take turns in every round; over the epochs the
weight moves from adaptation (1 - beta) to distillation (beta), beta growing exponentially from 0.1 to 0.9.

The paper's text and tables were not at hand; the authors' code counts as the paper (LIVIAETS/KD_UDA), and its successor
MT-MTDA (WACV 2021) for the reversed gradient and where the two differ.

Deviations (paper / authors' code / here):
    * KL: of the teacher from the student / the arguments are swapped, KL(student || teacher) / the former.
    * Optimisers: - / both own both networks and the teacher is not detached, so that the student's step moves the
      teacher towards the student; MT-MTDA: one for each / one for each, the teacher detached.
    * gamma's progress p: over the run / over each epoch, beginning anew / over the run.
    * ``variant="code"`` does these three as the code does.
    * Mode: - / left in eval mode by the test after the first epoch, in which target images are no longer passed
      through the networks: no MMD, no target distillation / training mode in every epoch.
    * Teacher: ImageNet's weights and a new head / likewise / ``teacher_init="scratch"``: ``network`` as it is made, or
      ``source``: the run's teacher, trained on the labelled domain.
    * The student's own MMD: - / computed and thrown away / not computed.
    * Discriminator: - / MT-MTDA: with a batch norm, which takes the domains' means away / without.
    * Result: - / the epoch that was best on the target's test labels / the last step.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from kd_lightning.core.schedules import grown
from kd_lightning.data.batches import StreamsBatch
from kd_lightning.losses.domains import ramp
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.domain_adaptation.alignment import Kind, Passes, aligned, both, discriminator_of
from kd_lightning.networks.normalized import Normalized


class UdaKd(Distiller):
    """One round: a step of the teacher's copy on (1 - beta) L_TDA, then one of the student on beta (L_SKD + L_TKD).

    Args:
        network: what ``teacher_init="scratch"`` trains in the teacher's place, as it is made.
        optimizer: makes the student's optimiser.
        optimizer_t: makes that of the teacher's copy and of the discriminator, if there is one.
        scheduler: makes the student's schedule, stepped once an epoch.
        scheduler_t: makes that of the teacher's copy.
        teacher_init: what the copy starts from: ``scratch``, ``network``; or ``source``, the teacher's weights.
        alignment: ``mmd``, or ``grl``: a discriminator of the domains behind a reversed gradient.
        hidden: width of the discriminator.
        passes: ``separate`` or ``concat``, see :func:`both`.
        temperature: T.
        alpha: weight of the teacher in L_SKD; 1 takes the labels from the student.
        beta: the first epoch's beta, and that towards which it grows. 0 leaves the student's step out, 1 the teacher's.
        growth: how beta grows, see :func:`grown`; ``step`` from 0 to 1 adapts first and distils then.
        variant: ``paper`` or ``code``, see the deviations above.
        **base: see :class:`Distiller`.
    """

    trains = frozenset({"teacher"})
    """Networks of the run of which it trains a copy."""
    keeps = ("adapted",)
    instead_of_gradients = "set teacher.access=white, for a copy of its network is trained; or choose method=dan"

    def __init__(
        self,
        *,
        network: nn.Module | None = None,
        optimizer: OptimizerFactory,
        optimizer_t: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        scheduler_t: SchedulerFactory | None = None,
        teacher_init: Literal["scratch", "source"] = "scratch",
        alignment: Kind = "mmd",
        hidden: int = 256,
        passes: Passes = "separate",
        temperature: float = 20.0,
        alpha: float = 0.3,
        beta: tuple[float, float] = (0.1, 0.9),
        growth: Literal["exponential", "linear", "constant", "step"] = "exponential",
        variant: Literal["paper", "code"] = "paper",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.make_optimizer_t, self.make_scheduler_t = optimizer_t, scheduler_t
        self.passes, self.temperature, self.alpha = passes, temperature, alpha
        self.beta, self.growth, self.variant = beta, growth, variant
        self.adapted = self._copy(network if teacher_init == "scratch" else None)
        self.discriminator = discriminator_of(self.adapted, hidden) if alignment == "grl" else None

    def _copy(self, network: nn.Module | None) -> Normalized:
        """A trainable copy of the teacher, with ``network`` in place of its own where that is given."""
        theirs = cast(Normalized, self.white.net)
        if network is None:
            return copy.deepcopy(theirs).requires_grad_(True)
        mean, std = theirs.mean.flatten().tolist(), theirs.std.flatten().tolist()
        return Normalized(network, mean=mean, std=std).requires_grad_(True)

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """The teacher's network, two streams, classes."""
        return {"teacher.gradients", "source.two_streams", "task.classification"}

    def configure_optimizers(self) -> Any:
        """The teacher's copy's optimiser and the student's; in the code's variant each owns both networks."""
        teacher, student = [*self.adapted.parameters()], [*self.student.parameters()]
        if self.discriminator is not None:
            teacher += self.discriminator.parameters()
        if self.variant == "code":
            teacher = student = [*teacher, *student]
        return self.scheduled(
            (self.make_optimizer_t(teacher), self.make_scheduler_t), (self.make_optimizer(student), self.make_scheduler)
        )

    def training_step(self, batch: StreamsBatch, batch_idx: int) -> None:
        """One batch of both domains, a step of each network."""
        x, y, target = batch.labelled.x, batch.labelled.y, batch.unlabelled.x
        assert y is not None
        opt_t, opt = self.opts()
        beta = grown(self.growth, self.current_epoch, self.trainer.max_epochs or 1, *self.beta)
        losses: dict[str, Tensor] = {}

        # Adaptation of the teacher's copy: L_TDA = CE + gamma MMD^2, weighed by 1 - beta
        if beta < 1:
            seen = both(self.adapted, x, target, self.passes)
            losses["adapt_label"] = self.task.loss(seen.source, y)
            losses |= aligned(seen, ramp(self.progress(batch_idx)), self.discriminator, self.gathered)
            self.update(opt_t, (1 - beta) * torch.stack(list(losses.values())).sum())

        # Distillation from the copy as it is now: L_SKD = alpha KL + (1 - alpha) CE, and L_TKD = KL, weighed by beta
        if beta > 0:
            with torch.no_grad() if self.variant == "paper" else nullcontext():
                t = both(self.adapted, x, target, self.passes)
            s = both(self.student, x, target, self.passes)
            kd = {"label": (1 - self.alpha) * self.task.loss(s.source, y)}
            kd |= {"source_kd": self.alpha * self.imitate(s.source, t.source), "kd": self.imitate(s.target, t.target)}
            self.update(opt, beta * torch.stack(list(kd.values())).sum())
            losses |= kd
        self.record(**losses, beta=torch.tensor(beta, device=self.device))

    def imitate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T^2 KL(teacher || student) of logits (N, K); the code has the two the other way round."""
        pair = (student, teacher) if self.variant == "paper" else (teacher, student)
        return kl(*pair, temperature=self.temperature)

    def progress(self, batch_idx: int) -> float:
        """Fraction p of the run that is done with this round; in the code's variant, of the epoch."""
        rounds = int(self.trainer.num_training_batches)
        if self.variant == "code":
            return (batch_idx + 1) / rounds
        return (self.rounds_done + 1) / (rounds * (self.trainer.max_epochs or 1))

    def student_updates(self, rounds: int) -> int:
        """Steps of the student: none in epochs whose beta is 0, such as the first half of ``growth=step``."""
        epochs = self.trainer.max_epochs or 1
        each = rounds / epochs
        learns = [grown(self.growth, epoch, epochs, *self.beta) > 0 for epoch in range(epochs)]
        return round(each * sum(learns))
