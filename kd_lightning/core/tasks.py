"""Tasks: the meaning of a network's output, its loss against labels, its metrics, its agreement with the teacher.

**One label space.** Labels are in the data's own terms: a class as int64, or a number in its unit as float32, such as
degrees. A network for regression outputs (N, 1), scaled so that the range of the labels is [0, 1]. Only the task
converts between the two, so a loss, a metric, a picture or a stored pool always has labels in the data's terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.errors import ConfigError, DataError


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
    unit = ""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    @property
    def outputs(self) -> int:
        """Number of outputs that a network for this task has."""
        return self.num_classes

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Mean cross-entropy over the batch, in nats."""
        return F.cross_entropy(output.float(), label)

    def metrics(self) -> dict[str, Metric]:
        """New metrics of output against label, by name."""
        return {"accuracy": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)}

    def agreement(self) -> Metric:
        """A new metric of student output against teacher output."""
        return ClassAgreement(self.num_classes, average="micro", validate_args=False)

    def described(self) -> dict[str, Any]:
        """Plain data for results and cards; :func:`task_of` reads it back."""
        return {"kind": "classification", "num_classes": self.num_classes}


class Distance(MeanMetric):
    """Mean absolute difference between a network's numbers and the labels, in the unit of the task.

    Args:
        task: converts the network's outputs to numbers in the unit.
        floored: round the network's numbers down to whole ones first.
    """

    def __init__(self, task: Regression, *, floored: bool = False) -> None:
        super().__init__(nan_strategy="disable")
        self.task, self.floored = task, floored

    def update(self, output: Tensor, label: Tensor) -> None:  # type: ignore[override]
        """Add outputs (N, 1) and labels (N,)."""
        numbers = self.task.numbers(output)
        super().update(((numbers.floor() if self.floored else numbers) - label.float()).abs())


class NumberAgreement(Distance):
    """Mean absolute difference between the numbers of student and teacher, in the unit of the task."""

    def update(self, student: Tensor, teacher: Tensor) -> None:  # type: ignore[override]
        """Add outputs of both, (N, 1)."""
        super().update(student, self.task.numbers(teacher))


class Regression:
    """A number in [low, high] in some unit: outputs (N, 1), labels (N,) in the unit, MSE loss, MAE in the unit.

    A network outputs the number's place in the range, 0 at ``low`` and 1 at ``high``. Outputs outside [0, 1] are
    clamped where they are converted to numbers, and not in losses.

    Args:
        low: the smallest possible label.
        high: the largest possible label.
        unit: in the plural, for tables: ``degrees``.
        floored: also report the MAE of predictions rounded down to whole numbers, ``mae_floored``, as cGAN-KD's code
            does for ages.

    Raises:
        ConfigError: ``low`` is not less than ``high``, or one is not finite.
    """

    headline = "mae"
    higher_is_better = False
    outputs = 1

    def __init__(self, *, low: float, high: float, unit: str, floored: bool = False) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"data.task: low={low} and high={high}, expected two numbers with low < high")
        self.low, self.high, self.unit, self.floored = low, high, unit, floored

    def normalise(self, label: Tensor) -> Tensor:
        """Convert labels in the unit to places in [0, 1], float32."""
        return ((label.float() - self.low) / (self.high - self.low)).clamp(0, 1)

    def denormalise(self, place: Tensor) -> Tensor:
        """Convert places in the range to numbers in the unit, float32."""
        return self.low + place.float() * (self.high - self.low)

    def numbers(self, output: Tensor) -> Tensor:
        """Convert outputs (N, 1) to numbers (N,) in the unit, clamped to the range."""
        return self.denormalise(_places(output).clamp(0, 1))

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Mean squared error of outputs (N, 1) against the places of labels (N,)."""
        return F.mse_loss(_places(output), self.normalise(label))

    def metrics(self) -> dict[str, Metric]:
        """New metrics of output against label, by name; the lower the better."""
        found: dict[str, Metric] = {"mae": Distance(self)}
        return found | ({"mae_floored": Distance(self, floored=True)} if self.floored else {})

    def agreement(self) -> Metric:
        """A new metric of student output against teacher output, in the unit; the lower the better."""
        return NumberAgreement(self)

    def described(self) -> dict[str, Any]:
        """Plain data for results and cards; :func:`task_of` reads it back."""
        return {"kind": "regression", "low": self.low, "high": self.high, "unit": self.unit, "floored": self.floored}

    def check_labels(self, name: str, labels: Tensor) -> None:
        """Refuse labels that are not numbers in the range; the slack covers rounding to float32.

        Args:
            name: of the set, for the message.
            labels: (N,).

        Raises:
            DataError: labels are no floats (N,) or out of range; the message has the first such label and how many.
        """
        slack = 1e-5 * (self.high - self.low)
        wrong = ~((labels >= self.low - slack) & (labels <= self.high + slack))  # also true for NaN
        if not labels.is_floating_point() or labels.dim() != 1:
            raise DataError(f"{name}: labels are {labels.dtype} {tuple(labels.shape)}, expected floats (N,)")
        if wrong.any():
            raise DataError(
                f"{name}: label {float(labels[wrong][0]):.6g} outside {self.low:g} to {self.high:g} {self.unit}, "
                f"{int(wrong.sum())} such image(s). Correct the labels, or widen the range with data.task.low and "
                "data.task.high"
            )


Task = Classification | Regression | Segmentation | MultiLabel


def _places(output: Tensor) -> Tensor:
    if output.dim() != 2 or output.shape[1] != 1:
        raise ValueError(f"a network for numbers answers (N, 1), got {tuple(output.shape)}")
    return output.float().squeeze(1)


def task_of(card: Mapping[str, Any]) -> Task:
    """The task that a student's card or a result describes; classification where it has no entry ``task``."""
    described = dict(card.get("task") or {"kind": "classification", "num_classes": len(card.get("classes") or ())})
    kinds: dict[str, type[Task]] = {
        "classification": Classification,
        "regression": Regression,
        "segmentation": Segmentation,
        "multi_label": MultiLabel,
    }
    return kinds[described.pop("kind")](**described)


def kept(task: Task | None) -> Callable[[Tensor], Tensor] | None:
    """What is kept of a batch of outputs when a whole set is measured: masks where they are maps, None for all."""
    return task.kept if isinstance(task, Segmentation) else None


def answers_to(task: Task, images: Tensor) -> tuple[int, ...]:
    """The shape of a network's outputs for images (N, C, H, W)."""
    maps = tuple(images.shape[2:]) if isinstance(task, Segmentation) else ()
    return (len(images), task.outputs, *maps)


@torch.no_grad()
def evaluate(
    task: Task, output: Tensor, label: Tensor | None, teacher_output: Tensor | None
) -> dict[str, float | None]:
    """Metrics of a network's outputs on a whole split; None where labels or teacher's outputs are missing.

    Args:
        task: chooses the metrics.
        output: what :func:`kept` keeps of the network's outputs.
        label: the labels, or None where there are none.
        teacher_output: the same of the teacher on the same images, or None where it must not be queried.
    """
    results: dict[str, float | None] = {}
    for name, metric in task.metrics().items():
        results[name] = None if label is None else float(metric(output, label))
    agreement = task.agreement()
    results["agreement"] = None if teacher_output is None else float(agreement(output, teacher_output))
    return results
