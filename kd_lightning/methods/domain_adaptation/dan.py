"""Unsupervised domain adaptation of the student itself: DAN and DANN, without a teacher.

Long et al., *Learning Transferable Features with Deep Adaptation Networks* (ICML 2015), and Ganin and Lempitsky,
*Unsupervised Domain Adaptation by Backpropagation* (ICML 2015). Cross-entropy on the labelled domain, and a term that
makes the features of both domains alike: their MMD, or what a discriminator of the domains makes of them through a
reversed gradient. A compact network profits less than a large one; see ``uda_kd``, of which this is a control.

Deviations (paper / authors' code / here):
    * Features: several layers / KD_UDA's baseline: what enters the head / likewise.
    * gamma's progress p: over the run / KD_UDA: over each epoch, beginning anew / over the run.
"""

from __future__ import annotations

from typing import Any

import torch

from kd_lightning.data.batches import StreamsBatch
from kd_lightning.losses.domains import ramp
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.domain_adaptation.alignment import Kind, Passes, aligned, both, discriminator_of


class Dan(Distiller):
    """L_cls + gamma MMD^2, or L_cls and the loss of a discriminator with its gradient reversed.

    Args:
        optimizer: makes the optimiser of the student and of the discriminator, if there is one.
        scheduler: makes its schedule, stepped once an epoch.
        alignment: ``mmd``, or ``grl``: a discriminator behind a reversed gradient.
        hidden: width of the discriminator.
        passes: ``separate`` or ``concat``, see :func:`both`.
        **base: see :class:`Distiller`.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        alignment: Kind = "mmd",
        hidden: int = 256,
        passes: Passes = "separate",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.make_optimizer, self.make_scheduler, self.passes = optimizer, scheduler, passes
        self.discriminator = discriminator_of(self.student, hidden) if alignment == "grl" else None

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Two streams, and classes."""
        return {"source.two_streams", "task.classification"}

    def configure_optimizers(self) -> Any:
        """One optimiser, at most one schedule."""
        learning = [*self.student.parameters()]
        if self.discriminator is not None:
            learning += self.discriminator.parameters()
        return self.scheduled((self.make_optimizer(learning), self.make_scheduler))

    def training_step(self, batch: StreamsBatch, batch_idx: int) -> None:
        """One batch of both domains, one step."""
        x, y = batch.labelled.x, batch.labelled.y
        assert y is not None
        seen = both(self.student, x, batch.unlabelled.x, self.passes)
        rounds = int(self.trainer.num_training_batches) * (self.trainer.max_epochs or 1)
        gamma = ramp((self.rounds_done + 1) / rounds)
        losses = {"label": self.task.loss(seen.source, y)}
        losses |= aligned(seen, gamma, self.discriminator, self.gathered)
        self.update(self.opts()[0], torch.stack(list(losses.values())).sum())
        self.record(**losses)
