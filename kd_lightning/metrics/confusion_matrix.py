"""Pictures of the student's outputs at the end of a run, against the labels and against the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.core.multi_label import MultiLabel, average_precisions, told_labels
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset
from kd_lightning.metrics.map_pictures import draw_maps
from kd_lightning.tracking.backends import Dashboards
from kd_lightning.tracking.image_grids import bars, matrix, save, scatter

SHOWN = 100
"""Most test images in a table of predictions."""
NONE = "none"
"""In such a table, of an image with several labels: that it has, or is told, none."""


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts of images of class ``i`` predicted as class ``j``: int64 (K, K), from classes (N,) and (N,)."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def draw_answers(
    folder: Path, boards: Dashboards, dataset: Dataset, student: Tensor, labels: Tensor, teacher: Tensor | None
) -> None:
    """Write a picture of the student against the labels and, where its answers are known, one against the teacher.

    ``confusion_labels.png`` and ``confusion_teacher.png`` where labels are classes, ``numbers_labels.png`` and
    ``numbers_teacher.png`` where they are numbers; ``average_precision.png`` where an image has several; where they are
    maps, see :func:`~kd_lightning.metrics.map_pictures.draw_maps`.

    Args:
        folder: where to write them.
        boards: dashboards that get them too.
        dataset: has the task and the class names.
        student: outputs on the test images, (N, K), or masks (N, H, W).
        labels: (N,), (N, K) or (N, H, W).
        teacher: the same of the teacher, or None.
    """
    if isinstance(dataset.task, Segmentation):
        draw_maps(folder, boards, dataset, {"student": student} | ({} if teacher is None else {"teacher": teacher}))
        return
    draw = _numbers if isinstance(dataset.task, Regression) else _confusions
    draw = _several if isinstance(dataset.task, MultiLabel) else draw
    draw(folder, boards, dataset, student.cpu(), labels.cpu(), None if teacher is None else teacher.cpu())


def _confusions(
    folder: Path, boards: Dashboards, dataset: Dataset, student: Tensor, labels: Tensor, teacher: Tensor | None
) -> None:
    classes, said = dataset.classes, student.argmax(1)
    others = {"labels": ("label", labels)}
    if teacher is not None:
        others["teacher"] = ("teacher", teacher.argmax(1))
    for name, (rows, true) in others.items():
        counts = confusion(said, true, len(classes))
        same = f"{int(counts.diagonal().sum()):,} of {len(said):,} test images alike"
        picture = matrix(counts, classes, f"Student against {name}: {same}", rows=rows, columns="student")
        save(picture, folder / f"confusion_{name}.png")
        boards.confusion(f"confusion/{name}", picture, true, said, classes)
    if dataset.test is not None and boards.loggers:
        told = {"label": [classes[i] for i in labels[:SHOWN].tolist()], **_guesses("student", student, classes)}
        told |= {} if teacher is None else _guesses("teacher", teacher, classes)
        boards.predictions("test/predictions", dataset.test.images[:SHOWN], told)


def _guesses(name: str, output: Tensor, classes: Sequence[str]) -> dict[str, list[Any]]:
    """The class that a network names for each of the first images, and how sure it is, under its name."""
    sure, said = output[:SHOWN].float().softmax(1).max(1)
    return {name: [classes[i] for i in said.tolist()], f"{name} confidence": [round(p, 3) for p in sure.tolist()]}


def _several(
    folder: Path, boards: Dashboards, dataset: Dataset, student: Tensor, labels: Tensor, teacher: Tensor | None
) -> None:
    classes, each = dataset.classes, average_precisions(student, labels)
    percent = (100 * each.nan_to_num(0)).round().long()
    title = f"Average precision of each label in %, of the student on {len(labels):,} test images"
    picture = bars(percent, classes, title)
    save(picture, folder / "average_precision.png")
    boards.picture("average_precision", picture, None)
    if dataset.test is not None and boards.loggers:
        there = [";".join(n for n, one in zip(classes, row, strict=True) if one) for row in labels[:SHOWN]]
        told: dict[str, list[Any]] = {"label": [names or NONE for names in there]}
        for name, output in ({"student": student} | ({} if teacher is None else {"teacher": teacher})).items():
            said, sure = zip(*told_labels(output[:SHOWN], classes), strict=True)
            told |= {name: [names or NONE for names in said], f"{name} confidence": [round(p, 3) for p in sure]}
        boards.predictions("test/predictions", dataset.test.images[:SHOWN], told)


def _numbers(
    folder: Path, boards: Dashboards, dataset: Dataset, student: Tensor, labels: Tensor, teacher: Tensor | None
) -> None:
    task = dataset.task
    assert isinstance(task, Regression)
    said = task.numbers(student)
    others = {"labels": ("label", labels.float())}
    if teacher is not None:
        others["teacher"] = ("teacher", task.numbers(teacher))
    for name, (columns, true) in others.items():
        apart = f"{float((said - true).abs().mean()):.2f} {task.unit} apart on {len(said):,} test images"
        title = f"Student against {name}: {apart}"
        picture = scatter(true, said, low=task.low, high=task.high, title=title, columns=columns, rows="student")
        save(picture, folder / f"numbers_{name}.png")
        boards.picture(f"numbers/{name}", picture, None)
