"""What a network's output means: its loss against labels, its metrics, its agreement with the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


class ClassAgreement(MulticlassAccuracy):
    """Fraction of images that student and teacher put in the same class."""

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Count a batch of logits, both (N, C)."""
        super().update(student, teacher.argmax(1))


class Classification:
    """One of C classes: logits (N, C), labels (N,) int64, cross-entropy, accuracy as a fraction.

    Args:
        num_classes: C.
    """

    headline = "accuracy"
    higher_is_better = True

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Mean cross-entropy over the batch, in nats."""
        return F.cross_entropy(output.float(), label)

    def metrics(self) -> dict[str, Metric]:
        """Fresh metrics of output against label, by name."""
        return {"accuracy": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)}

    def agreement(self) -> Metric:
        """A fresh metric of student output against teacher output."""
        return ClassAgreement(self.num_classes, average="micro", validate_args=False)


@torch.no_grad()
def evaluate(
    task: Classification, output: Tensor, label: Tensor | None, teacher_output: Tensor | None
) -> dict[str, float | None]:
    """Metrics of a network's outputs on a whole split; what cannot be known is None.

    Args:
        task: says which metrics.
        output: the network's outputs, (N, ...).
        label: the labels, or None where nobody knows them.
        teacher_output: the teacher's outputs on the same images, or None where it may not be asked.
    """
    results: dict[str, float | None] = {}
    for name, metric in task.metrics().items():
        results[name] = None if label is None else float(metric(output, label))
    agreement = task.agreement()
    results["agreement"] = None if teacher_output is None else float(agreement(output, teacher_output))
    return results
