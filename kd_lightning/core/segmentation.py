"""The task of segmentation: a class for every pixel, measured by confusion matrices that are accumulated."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from kd_lightning.core.inference import at_once
from kd_lightning.errors import ConfigError, DataError

VOID = 255
"""The value of pixels without a class, in every data set of this package."""
MOST_CLASSES = 255
"""Label maps are kept as uint8."""


def mask_of(output: Tensor) -> Tensor:
    """The likeliest class of every pixel: (N, H, W) of logits (N, C, H, W); masks (N, H, W) pass unchanged."""
    return output.argmax(1) if output.dim() == 4 else output


def pixel_confusion(rows: Tensor, columns: Tensor, num_classes: int) -> Tensor:
    """Counts of pixels of class ``i`` in ``rows`` and ``j`` in ``columns``, int64 (C, C); others are left out.

    Args:
        rows: classes (N, H, W); pixels outside 0 .. C-1, such as void ones, do not count.
        columns: classes of the same shape.
        num_classes: C.
    """
    counts = torch.zeros(num_classes**2, dtype=torch.long, device=rows.device)
    few = at_once(rows, maps=True)  # the masks of a whole set would take many times their memory
    for some, others in zip(rows.split(few), columns.split(few), strict=True):
        one, two = some.long().flatten(), others.long().flatten()
        counted = (one >= 0) & (one < num_classes) & (two >= 0) & (two < num_classes)
        counts += torch.bincount(one[counted] * num_classes + two[counted], minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def class_ious(counts: Tensor) -> Tensor:
    """Intersection over union of each class, float64 (C,); NaN for a class in neither rows nor columns."""
    counts = counts.double()
    both = counts.diagonal()
    return both / (counts.sum(0) + counts.sum(1) - both)


class _Confusion(Metric):
    """Accumulates a confusion matrix of pixels; update takes logits (N, C, H, W) or masks (N, H, W)."""

    counts: Tensor
    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, against: Tensor) -> None:
        """Count a batch of outputs against labels (N, H, W) or other outputs; void pixels do not count."""
        self.counts += pixel_confusion(mask_of(against), mask_of(output), self.num_classes)


class MeanIou(_Confusion):
    """The mean of the classes' IoU, over the classes that occur in labels or outputs."""

    def compute(self) -> Tensor:
        """The mean, in [0, 1]."""
        return class_ious(self.counts).nanmean().float()


class PixelAccuracy(_Confusion):
    """The fraction of pixels with equal classes."""

    def compute(self) -> Tensor:
        """The fraction, in [0, 1]; NaN without pixels."""
        return (self.counts.diagonal().sum().double() / self.counts.sum()).float()


class Segmentation:
    """One of C classes for every pixel: logits (N, C, H, W), labels (N, H, W) with ``void`` where there is no class.

    Args:
        num_classes: C, without void.
        void: label of pixels that count in no loss and no metric.

    Raises:
        ConfigError: more classes than a label map holds, or ``void`` is one of them.
    """

    headline = "miou"
    higher_is_better = True
    unit = ""

    def __init__(self, num_classes: int, void: int = VOID) -> None:
        if not 2 <= num_classes <= MOST_CLASSES:
            raise ConfigError(f"data.task.num_classes={num_classes}: expected 2 to {MOST_CLASSES} classes")
        if not num_classes <= void <= VOID:
            raise ConfigError(
                f"data.task.void={void}: expected a value from {num_classes} to {VOID}, which is no class"
            )
        self.num_classes, self.void = num_classes, void

    @property
    def outputs(self) -> int:
        """Number of outputs that a network for this task has at every pixel."""
        return self.num_classes

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Mean cross-entropy over the pixels that are not void, in nats; 0 where all are.

        Raises:
            ValueError: the output is no logits (N, C, H, W) as large as the labels.
        """
        wanted = (len(label), self.num_classes, *label.shape[1:])
        if tuple(output.shape) != wanted:
            raise ValueError(f"a network for segmentation answers {wanted} to these images, got {tuple(output.shape)}")
        total = F.cross_entropy(output.float(), label, ignore_index=self.void, reduction="sum")
        return total / (label != self.void).sum().clamp(min=1)

    def metrics(self) -> dict[str, Metric]:
        """New metrics of output against label, by name."""
        return {"miou": MeanIou(self.num_classes), "pixel_accuracy": PixelAccuracy(self.num_classes)}

    def agreement(self) -> Metric:
        """A new metric: the fraction of all pixels, void ones too, that student and teacher put in one class."""
        return PixelAccuracy(self.num_classes)

    def kept(self, output: Tensor) -> Tensor:
        """What is kept of outputs on a whole set: masks, uint8 (N, H, W), and not logits."""
        return mask_of(output).to(torch.uint8)

    def described(self) -> dict[str, Any]:
        """Plain data for results and cards; :func:`~kd_lightning.core.tasks.task_of` reads it back."""
        return {"kind": "segmentation", "num_classes": self.num_classes, "void": self.void}

    def check_labels(self, name: str, labels: Tensor, images: Tensor) -> None:
        """Refuse label maps of another size than their images, and values that are neither classes nor void.

        Args:
            name: of the set, for the message.
            labels: (N, H, W).
            images: (N, C, H, W).

        Raises:
            DataError: says which.
        """
        if labels.is_floating_point() or labels.shape != (len(images), *images.shape[2:]):
            raise DataError(
                f"{name}: labels are {labels.dtype} {tuple(labels.shape)}, expected integers "
                f"{(len(images), *images.shape[2:])}, a class for every pixel"
            )
        for i, label in enumerate(labels):  # one at a time: a set's masks of comparison would be as large as the set
            wrong = (label >= self.num_classes) & (label != self.void) | (label < 0)
            if wrong.any():
                raise DataError(
                    f"{name}: image {i} has the label {int(label[wrong][0])}, expected 0 to {self.num_classes - 1}, "
                    f"or {self.void} for void. Correct the labels or give all classes"
                )
