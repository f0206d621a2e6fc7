"""Checks a teacher's accuracy on labelled images before distillation, and looks for the cause if it is low."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kd_lightning.core.inference import predict
from kd_lightning.core.segmentation import Segmentation, class_ious, pixel_confusion
from kd_lightning.core.tasks import Regression, Task, kept
from kd_lightning.data.dataset import Split
from kd_lightning.errors import TeacherError
from kd_lightning.networks.normalized import Normalized

GAIN = 0.05
"""A teacher is misconfigured if another normalisation, channel or class order improves its score by this much."""


def diagnose(
    teacher: Normalized, split: Split, *, task: Task | None = None, limit: int = 2000, device: str = "cpu"
) -> float:
    """Measure the teacher and refuse one that is near chance or misconfigured.

    Args:
        teacher: the network with the normalisation the run would use.
        split: labelled images.
        task: what the labels are, None for classes.
        limit: at most this many of them are used; a quarter of that for other normalisations and orders.
        device: the device it runs on.

    Returns:
        Accuracy or mean IoU, in [0, 1]; for regression 1 - e / e_median, with the mean absolute errors of the teacher
        and of the labels' median.

    Raises:
        TeacherError: it is near chance, or better by ``GAIN`` under another normalisation, channel order or class
            order; the message says which, and what to type.
    """
    if (keep := kept(task)) is not None:
        limit //= 10  # a map has many labels
    pick = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:limit]
    images, labels = split.images[pick], split.labels[pick]
    output = predict(teacher, images, keep=keep, device=device)
    if isinstance(task, Regression):
        measure = _of_numbers(task, labels)
    elif isinstance(task, Segmentation):
        measure = _of_maps(task, labels)
    else:
        measure = _of_classes(labels, output.shape[1])
    score, said = measure.score(output, labels), measure.said
    few = slice(None, max(500, limit // 4) if keep is None else limit // 4)
    cause, better = _best_reading(teacher, images[few], labels[few], output[few], measure.score, keep, device)
    if better > measure.score(output[few], labels[few]) + GAIN and better > measure.floor:
        raise TeacherError(
            f"the teacher {said(score)} on labelled images, but {said(better)} with {cause}. Fix that, or "
            "accept the teacher as it is with teacher.check=false"
        )
    if score < measure.chance + measure.margin:
        raise TeacherError(
            f"the teacher {said(score)} on labelled images, where always naming {measure.guess} "
            f"{said(measure.chance)}: nothing can be learned from it. Are these its weights, its {measure.answers}, "
            f"its kind of images ({images.shape[1]}x{images.shape[2]}x{images.shape[3]})? Train longer with "
            "data.recipe.epochs=N, or accept it with teacher.check=false"
        )
    return score


Score = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class _Measure:
    """A score, at most 1, of outputs against labels, and ``chance``, the score of one answer for all images."""

    score: Score
    said: Callable[[float], str]
    guess: str
    chance: float
    margin: float
    floor: float
    answers: str


def _of_classes(labels: Tensor, classes: int) -> _Measure:
    chance = float(torch.bincount(labels).max()) / len(labels)
    noise = 2 * (chance * (1 - chance) / len(labels)) ** 0.5
    said = "reaches {:.3f}".format
    return _Measure(_accuracy, said, "the commonest class", chance, max(GAIN, noise), 2 / classes, "classes")


def _of_numbers(task: Regression, labels: Tensor) -> _Measure:
    guessed = max(float((labels - labels.median()).abs().mean()), 1e-12)

    def skill(output: Tensor, labels: Tensor) -> float:
        return 1 - float((task.numbers(output) - labels).abs().mean()) / guessed

    def said(score: float) -> str:
        return f"is {(1 - score) * guessed:.3g} {task.unit} off"

    answers = f"numbers (0 for {task.low:g}, 1 for {task.high:g} {task.unit})"
    return _Measure(skill, said, "their median", 0.0, GAIN, GAIN, answers)


def _of_maps(task: Segmentation, labels: Tensor) -> _Measure:
    counts = torch.bincount(labels.flatten().long(), minlength=task.void + 1)[: task.num_classes]
    there = int((counts > 0).sum())
    # of one class for all pixels: its IoU is its share, that of the others is 0
    chance = float(counts.max()) / max(int(counts.sum()), 1) / max(there, 1)

    def miou(output: Tensor, labels: Tensor) -> float:
        return float(class_ious(pixel_confusion(labels, output, task.num_classes)).nanmean())

    said = "reaches a mean IoU of {:.3f}".format
    return _Measure(miou, said, "the commonest class", chance, GAIN, 2 * chance, "classes")


def _best_reading(
    teacher: Normalized,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    score: Score,
    keep: Callable[[Tensor], Tensor] | None,
    device: str,
) -> tuple[str, float]:
    readings = {"": score(logits, labels)}
    if score == _accuracy:
        order = [(teacher.class_order or range(logits.shape[1]))[i] for i in _assignment(logits, labels)]
        readings[f"another class order: teacher.class_order={_typed(order)}"] = _accuracy_permuted(logits, labels)
    if readings[""] + GAIN >= 1:  # nothing can be better by more than GAIN
        return max(readings.items(), key=lambda item: item[1])
    channels = images.shape[1]
    for name, (mean, std) in _normalisations(channels).items():
        other = Normalized(teacher.net, mean=mean, std=std, class_order=teacher.class_order)
        readings[f"{name}: teacher.mean={_typed(mean)} teacher.std={_typed(std)}"] = score(
            predict(other, images, keep=keep, device=device), labels
        )
    if channels == 3:
        readings["the channels in BGR order"] = score(
            predict(teacher, images.flip(1), keep=keep, device=device), labels
        )
    readings["inverted images (white on black instead of black on white, or the reverse)"] = score(
        predict(teacher, 255 - images, keep=keep, device=device), labels
    )
    best = max(readings, key=readings.__getitem__)
    return best, readings[best]


def _normalisations(channels: int) -> dict[str, tuple[list[float], list[float]]]:
    table = {
        "images left in [0, 1]": ([0.0] * channels, [1.0] * channels),
        "images in [-1, 1]": ([0.5] * channels, [0.5] * channels),
        "images in [0, 255]": ([0.0] * channels, [round(1 / 255, 6)] * channels),
    }
    if channels == 3:
        table["ImageNet's normalisation"] = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        table["CIFAR-10's normalisation"] = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    if channels == 1:
        table["MNIST's normalisation"] = ([0.1307], [0.3081])
    return table


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def _assignment(logits: Tensor, labels: Tensor) -> list[int]:
    classes = logits.shape[1]
    counts = torch.zeros(classes, classes, dtype=torch.long)
    counts.index_put_((labels, logits.argmax(1)), torch.ones_like(labels), accumulate=True)
    return linear_sum_assignment(counts.numpy(), maximize=True)[1].tolist()


def _accuracy_permuted(logits: Tensor, labels: Tensor) -> float:
    # each true class may take any one output, so the best assignment overfits a little: hence half for choosing
    half = len(labels) // 2
    order = _assignment(logits[:half], labels[:half])
    return _accuracy(logits[half:][:, order], labels[half:])


def _typed(values: list[Any]) -> str:
    return str(values).replace(" ", "")
