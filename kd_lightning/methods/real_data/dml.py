"""DML: deep mutual learning (Zhang et al., CVPR 2018).

Two students learn at once, without a teacher: each of the labels and of the other's answers,
CE(p, y) + KL(other || p), at temperature 1. Two networks that begin differently find different answers for the classes
besides the right one, and each is a teacher of the other from the first step on.

Deviations (paper / authors' code / here):
    * order: the second network learns of the first after that one's update (Alg. 1) / in turn / both of the same batch
      at once, as most later implementations do; each sees the other's answers before the update.
    * KL: as it is / 1e-8 is added to probabilities and to their quotient, some 1e-5 of its value / as it is.
    * networks: any number / any number / two.
    * The paper reports both; the student's file is that of ``student``, the other is kept as peer.safetensors.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kd_lightning.data.batches import Batch
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory


class Dml(Distiller):
    """One round: one step of both networks on a batch.

    Args:
        peer: the other network; images (N, C, H, W) in [0, 1] to logits.
        optimizer: makes the optimiser of both.
        scheduler: its schedule, stepped once an epoch.
        mutual: weight of the other's answers.
        temperature: at which they are compared; 1 in the paper.
        **base: see :class:`Distiller`.
    """

    keeps = ("peer",)

    def __init__(
        self,
        *,
        peer: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        mutual: float = 1.0,
        temperature: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.peer = peer
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.mutual, self.temperature = mutual, temperature

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Labelled images of classes."""
        return {"source.images", "source.labels", "task.classification"}

    def configure_optimizers(self) -> Any:
        """One optimiser of both networks, whose gradients have nothing in common."""
        both = [*self.student.parameters(), *self.peer.parameters()]
        return self.scheduled((self.make_optimizer(both), self.make_scheduler))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 5 and 6, for both networks on the same batch."""
        own, other = self.student(batch.x), self.peer(batch.x)
        losses = {
            "label": self.task.loss(own, batch.y),
            "peer_label": self.task.loss(other, batch.y),
            "mutual": self.mutual * kl(own, other.detach(), temperature=self.temperature),
            "peer_mutual": self.mutual * kl(other, own.detach(), temperature=self.temperature),
        }
        self.update(self.opts()[0], sum(losses.values()))
        self.record(**losses)
