"""How well a teacher does what its task asks for, as a score beside that of one answer for all images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.core.multi_label import ranking_precision
from kd_lightning.core.segmentation import Segmentation, class_ious, pixel_confusion
from kd_lightning.core.tasks import Regression

GAIN = 0.05
"""A teacher is misconfigured if another normalisation, channel or class order improves its score by this much."""


Each = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Measure:
    """A score, at most 1, of outputs against labels, and ``chance``, the score of one answer for all images.

    ``each`` is the score of every image (N,), whose mean is ``score``.
    """

    each: Each
    said: Callable[[float], str]
    guess: str
    chance: float
    margin: float
    floor: float
    answers: str

    def score(self, output: Tensor, labels: Tensor) -> float:
        """The mean score of outputs against labels."""
        return float(self.each(output, labels).mean())


def of_classes(labels: Tensor, classes: int) -> Measure:
    """Accuracy; labels int64 (N,)."""
    chance = float(torch.bincount(labels).max()) / len(labels)
    said = "reaches {:.3f}".format
    return Measure(right, said, "the commonest class", chance, GAIN, 2 / classes, "classes")


def of_numbers(task: Regression, labels: Tensor) -> Measure:
    """1 less the absolute error as a share of that of the median; labels (N,)."""
    guessed = max(float((labels - labels.median()).abs().mean()), 1e-12)

    def skill(output: Tensor, labels: Tensor) -> Tensor:
        return 1 - (task.numbers(output) - labels).abs() / guessed

    def said(score: float) -> str:
        return f"is {(1 - score) * guessed:.3g} {task.unit} off"

    answers = f"numbers (0 for {task.low:g}, 1 for {task.high:g} {task.unit})"
    return Measure(skill, said, "their median", 0.0, GAIN, GAIN, answers)


def of_maps(task: Segmentation, labels: Tensor) -> Measure:
    """Mean IoU of an image; labels (N,H,W)."""
    counts = torch.bincount(labels.flatten().long(), minlength=task.void + 1)[: task.num_classes]
    there = int((counts > 0).sum())
    # of one class for all pixels: its IoU is its share, that of the others is 0
    chance = float(counts.max()) / max(int(counts.sum()), 1) / max(there, 1)

    def miou(output: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(labels[:, None], output[:, None], strict=True)
        return torch.stack([class_ious(pixel_confusion(*pair, task.num_classes)).nanmean() for pair in pairs])

    said = "reaches a mean IoU of {:.3f}".format
    return Measure(miou, said, "the commonest class", chance, GAIN, 2 * chance, "classes")


def of_several(labels: Tensor) -> Measure:
    """Precision of the ranking of an image's labels; labels of 0 and 1, (N,K)."""
    often = labels.float().mean(0).expand(len(labels), -1)
    chance = float(ranking_precision(often, labels).mean())
    said = "ranks labels with a precision of {:.3f}".format
    return Measure(ranking_precision, said, "the commonest labels first", chance, GAIN, chance + GAIN, "labels")


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest of (N,K) is the label (N,), else 0."""
    return (logits.argmax(1) == labels).float()
