"""CGN's invariant classifier for ImageNet (Sauer and Geiger, ICLR 2021, arXiv 2101.06046).

Three heads on one ResNet. On real images their mean predicts the class; on counterfactual images, whose shape, texture
and background have a class each, every head predicts its own. Each head thus learns to rely on one cause, which real
images cannot teach, because their three causes are correlated.

Deviations (paper / authors' code / here):
    * Batch norm: - / in eval mode while training, with the statistics the ResNet came with / likewise.
    * Counterfactual images of an epoch: - / a sample of all there are / drawn anew for each batch.
    * Result: - / the epoch that was best on the validation images / the last step.
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.data.batches import CounterfactualBatch
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.networks.classifiers.invariant_ensemble import Heads, InvariantEnsemble, load_backbone
from kd_lightning.networks.normalized import Normalized


class InvariantClassifier(Distiller):
    """One round: one step on real and counterfactual images together.

    Args:
        optimizer: makes the student's optimiser from its parameters.
        scheduler: makes its schedule, stepped once an epoch.
        backbone: weights of torchvision's ResNet to start the student's from; None keeps those it has.
        **base: see :class:`Distiller`; the student's network is an ``InvariantEnsemble``.

    Raises:
        ValueError: the student is no ``InvariantEnsemble``.
        TeacherError: the file cannot be read, or holds another network.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        backbone: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        net = getattr(self.student, "net", None)
        if not isinstance(self.student, Normalized) or not isinstance(net, InvariantEnsemble):
            raise ValueError(
                f"InvariantClassifier trains an InvariantEnsemble, got {type(net or self.student).__name__}: use "
                "student=invariant_ensemble"
            )
        if backbone is not None:
            load_backbone(net, backbone)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Labelled images, and counterfactual ones with three labels."""
        return {"source.images", "source.labels", "source.counterfactuals", "task.classification"}

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules except the student's batch norms, which stay in eval mode."""
        super().train(mode)
        for module in self.student.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def configure_optimizers(self) -> Any:
        """One optimiser, at most one schedule."""
        return self.scheduled((self.make_optimizer(self.student.parameters()), self.make_scheduler))

    def training_step(self, batch: CounterfactualBatch, batch_idx: int) -> None:
        """One step on real and counterfactual images together."""
        losses = {"real": self.task.loss(self.heads(batch.x).average, batch.y)}
        if len(batch.made):
            for name, logits, y in zip(Heads._fields, self.heads(batch.made), batch.causes.unbind(1), strict=True):
                losses[name] = F.cross_entropy(logits.float(), y)
        self.update(self.opts()[0], torch.stack(list(losses.values())).sum())
        self.record(**losses)

    def heads(self, x: Tensor) -> Heads:
        """Logits (N, K) of each head for images (N, C, H, W) in [0, 1]."""
        student = cast(Normalized, self.student)
        return cast(InvariantEnsemble, student.net).heads(student.standardise(x))
