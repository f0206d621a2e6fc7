"""Distillation on the images of a source: a label loss plus any number of weighted terms.

Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network* (2015): the student imitates the
teacher's softened probabilities, with the gradient rescaled by the squared temperature, besides its own
loss on the labels. ``supervised`` is this class without terms, ``kd`` with one response term.

Deviations:
    * Weights 0.1 (labels) and 0.9 (teacher, T=4) follow the CIFAR-100 benchmark of Tian et al. (2020);
      the paper itself names no pair of weights for images.
    * Where labels are numbers, the student imitates the teacher's number: the squared difference in place of KL.
    * With stored answers (``source=queried``) the teacher is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.batches import Batch
from kd_lightning.losses.dense import channel_wise, dist_pixels
from kd_lightning.losses.response import kl
from kd_lightning.losses.soft_labels import answer_cross_entropy, soft_cross_entropy
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory

FOR_CLASSES = {f"{loss.__module__}.{loss.__name__}" for loss in (kl, soft_cross_entropy, answer_cross_entropy)}
"""Losses that expect logits of classes; :func:`~kd_lightning.losses.soft_labels.imitation` suits regression, too."""
FOR_MAPS = {f"{loss.__module__}.{loss.__name__}" for loss in (channel_wise, dist_pixels)}
"""Losses that expect logits of every pixel, unless a term shows them features."""


class Distill(Distiller):
    """label * L(student, y) + sum of weight * term(student, teacher).

    Args:
        optimizer: makes the student's optimiser from its parameters.
        scheduler: makes its schedule, stepped once an epoch.
        label: weight of the task's loss on the labels.
        terms: name -> ``{weight, loss}`` with ``loss(student logits, teacher logits)`` a scalar.
        **base: see :class:`Distiller`.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        label: float = 0.1,
        terms: Mapping[str, Mapping[str, Any]] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.label = label
        self.terms: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {
            name: (term["weight"], term["loss"]) for name, term in (terms or {}).items()
        }

    @classmethod
    def needs(cls, *, label: float = 0.1, terms: Any = None, **settings: Any) -> set[str]:
        """Images; labels and a teacher if their weights are not 0; classes if a loss is made for them."""
        wanted = {"source.images"}
        losses = [term["loss"] for term in (terms or {}).values() if isinstance(term, Mapping) and "loss" in term]
        if any(isinstance(loss, Mapping) and loss.get("_target_") in FOR_CLASSES for loss in losses):
            wanted |= {"task.classification", "task.segmentation"}
        of_logits = [term for term in (terms or {}).values() if isinstance(term, Mapping) and "student" not in term]
        if any(isinstance(term.get("loss"), Mapping) and term["loss"].get("_target_") in FOR_MAPS for term in of_logits):
            wanted.add("task.segmentation")
        if label:
            wanted.add("source.labels")
        if terms:
            wanted.add("teacher")
        return wanted

    def configure_optimizers(self) -> Any:
        """One optimiser, at most one schedule."""
        return self.scheduled((self.make_optimizer(self.student.parameters()), self.make_scheduler))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch, one step."""
        student = self.student(batch.x)
        losses: dict[str, Tensor] = {}
        if self.label:
            losses["label"] = self.label * self.task.loss(student, batch.y)
        if self.terms:
            teacher = self.answer(batch)
            for name, (weight, loss) in self.terms.items():
                losses[name] = weight * loss(student, teacher)
        self.update(self.opts()[0], torch.stack(list(losses.values())).sum())
        self.record(**losses)

    @torch.no_grad()
    def answer(self, batch: Batch) -> Tensor:
        """The teacher's answers (N, K): those stored with the batch, else asked now."""
        if batch.t is not None:
            return batch.t
        assert self.teacher is not None
        return self.teacher(batch.x)
