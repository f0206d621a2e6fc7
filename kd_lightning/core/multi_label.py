"""The task of several labels an image: each of C labels is there or not, by itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from kd_lightning.errors import ConfigError, DataError


class MeanAveragePrecision(MultilabelAveragePrecision):
    """mAP: the average precision of each label over all images, averaged over the labels that some image has.

    Args:
        num_labels: C.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average=None, validate_args=False)

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add logits (N, C) and labels (N, C), 0 or 1.

        Only the order of the logits counts. x / (1 + |x|) keeps it and ends in [-1, 1]; a sigmoid in float32 makes
        large logits equal, and torchmetrics would take one of some batches only.
        """
        super().update(F.softsign(output.float()) / 2 + 0.5, label.long())

    def each(self) -> Tensor:
        """The average precision of each label (C,); NaN where no image has it, or where an answer was NaN."""
        with warnings.catch_warnings(action="ignore"):  # torchmetrics' own about labels without an image
            values: Tensor = super().compute()
        unknown = ~dim_zero_cat(self.target).bool().any(0) | dim_zero_cat(self.preds).isnan().any()
        return values.masked_fill(unknown, torch.nan)

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean over the labels that some image has, in [0, 1]; NaN without any, or where an answer was NaN."""
        return self.each().nanmean()


class LabelAccuracy(MeanMetric):
    """The fraction of all N C labels that are told right: there where the logit is positive."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, output: Tensor, label: Tensor) -> None:  # type: ignore[override]
        """Add logits (N, C) and labels (N, C)."""
        super().update(((output > 0) == label.bool()).float())


class LabelAgreement(LabelAccuracy):
    """The fraction of all N C labels that student and teacher tell alike."""

    def update(self, student: Tensor, teacher: Tensor) -> None:  # type: ignore[override]
        """Add logits of both, (N, C)."""
        super().update(student, teacher > 0)


class MultiLabel:
    """Any number of C labels: logits (N, C), labels (N, C) of 0 and 1, binary cross-entropy, mAP.

    Args:
        num_classes: C.

    Raises:
        ConfigError: C is less than 1.
    """

    headline = "map"
    higher_is_better = True
    unit = ""

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ConfigError(f"data.task.num_classes={num_classes}: expected at least one label")
        self.num_classes = num_classes

    @property
    def outputs(self) -> int:
        """Number of outputs that a network for this task has."""
        return self.num_classes

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Binary cross-entropy in nats, the mean over labels and images.

        Raises:
            ValueError: the shapes differ.
        """
        if output.shape != label.shape:
            raise ValueError(
                f"a network for several labels answers {tuple(label.shape)} to these images, got {tuple(output.shape)}"
            )
        return F.binary_cross_entropy_with_logits(output.float(), label.float())

    def metrics(self) -> dict[str, Metric]:
        """New metrics of output against label, by name."""
        return {"map": MeanAveragePrecision(self.num_classes), "label_accuracy": LabelAccuracy()}

    def agreement(self) -> Metric:
        """A new metric of student output against teacher output."""
        return LabelAgreement()

    def described(self) -> dict[str, Any]:
        """Plain data for results and cards; :func:`~kd_lightning.core.tasks.task_of` reads it back."""
        return {"kind": "multi_label", "num_classes": self.num_classes}

    def check_labels(self, name: str, labels: Tensor) -> None:
        """Refuse labels that are not 0 and 1 for each of C labels.

        Args:
            name: of the set, for the message.
            labels: (N, C).

        Raises:
            DataError: they have another shape, or other values.
        """
        if labels.dim() != 2 or labels.shape[1] != self.num_classes:
            raise DataError(f"{name}: labels are {tuple(labels.shape)}, expected (N, {self.num_classes}) of 0 and 1")
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            raise DataError(f"{name}: {int(wrong.sum())} labels are neither 0 nor 1, such as {labels[wrong][0].item()}")


def average_precisions(output: Tensor, label: Tensor) -> Tensor:
    """The average precision of each label (C,), NaN where no image has it; of logits (N, C) and labels (N, C)."""
    metric = MeanAveragePrecision(output.shape[1])
    metric.update(output, label)
    return metric.each()


def ranking_precision(output: Tensor, label: Tensor) -> Tensor:
    """How well each image's own labels stand before its others, (N,) in [0, 1]: label ranking average precision.

    For each label that an image has, the share of its labels among those told as surely or surer; the mean over them
    (Schapire and Singer 2000; 1 where an image has no label or all).

    Args:
        output: logits (N, C).
        label: (N, C) of 0 and 1.
    """
    there = label.bool()
    above = output[:, None, :] >= output[:, :, None]  # [n, i, j]: j is as sure as i or surer
    share = (above & there[:, None, :]).sum(2) / above.sum(2).clamp(min=1)
    mean = (share * there).sum(1) / there.sum(1).clamp(min=1)
    return mean.masked_fill(~there.any(1) | there.all(1), 1.0)


def told_labels(logits: Tensor, names: Sequence[str]) -> list[tuple[str, float]]:
    """For each image the labels that a network tells, the surest first with ``;`` between them, and its confidence.

    That is the smallest probability with which it tells any of the C labels, there or not.

    Args:
        logits: (N, C).
        names: of the C labels.
    """
    order = logits.argsort(dim=1, descending=True).tolist()
    sure = logits.float().abs().amin(1).sigmoid().tolist()
    told = [
        ";".join(names[i] for i in places if row[i] > 0) for row, places in zip(logits.tolist(), order, strict=True)
    ]
    return list(zip(told, sure, strict=True))
