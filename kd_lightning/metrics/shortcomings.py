"""What is wrong with a student's answers to the test images, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.tasks import Classification, Regression, Task


def shortcomings(task: Task, output: Tensor, labels: Tensor, classes: Sequence[str]) -> Iterator[str]:
    """Yield a line for a constant student, one no better than a guess, and classes that it never names.

    Args:
        task: of label maps nothing is said.
        output: (N, K).
        labels: (N,), or (N, K) of 0 and 1.
        classes: names of the K classes.
    """
    if isinstance(task, Regression):
        yield from _of_numbers(task, output, labels)
    if isinstance(task, MultiLabel):
        yield from _of_several(output, labels.bool(), classes)
    if not isinstance(task, Classification) or not len(labels):
        return
    named, there = (torch.bincount(each, minlength=task.num_classes) for each in (output.argmax(1), labels))
    right = float((output.argmax(1) == labels).float().mean())
    guess = float(there.max()) / len(labels)
    missing = [classes[i] for i in ((named == 0) & (there > 0)).nonzero().flatten().tolist()]
    if int((named > 0).sum()) == 1 and int((there > 0).sum()) > 1:
        yield f"the student is constant: it names {classes[int(named.argmax())]} for every test image"
    elif missing:
        yield f"the student never names {_few(missing)}, of which there are test images"
    error = (guess * (1 - guess) / len(labels)) ** 0.5
    if int((there > 0).sum()) > 1 and right <= guess + 2 * error:
        yield (
            f"the student's accuracy, {right:.3f}, is at chance: always naming the commonest class reaches {guess:.3f} "
            f"on these {len(labels):,} test images"
        )


def _of_numbers(task: Regression, output: Tensor, labels: Tensor) -> Iterator[str]:
    told = task.numbers(output).flatten()
    off = float((told - labels).abs().mean())
    guess = float((labels - labels.median()).abs().mean())
    if len(told) > 1 and float(told.std()) <= 1e-6 * (task.high - task.low):
        yield f"the student is constant: it tells {float(told[0]):.4g} {task.unit} of every test image"
    elif off >= guess:
        yield (
            f"the student is {off:.3g} {task.unit} off, no better than always telling the median of the labels, which "
            f"is {guess:.3g} off"
        )


def _of_several(output: Tensor, labels: Tensor, classes: Sequence[str]) -> Iterator[str]:
    told, there = output > 0, labels.any(0)
    if absent := [name for name, some in zip(classes, there.tolist(), strict=True) if not some]:
        yield f"no test image has the label {_few(absent)}: left out of map, the mean over the other {int(there.sum())}"
    if len(labels) > 1 and bool((labels != labels[0]).any()) and float(output.std(0).max()) <= 1e-6:
        yield "the student is constant: it tells the same labels of every test image"
    elif never := [classes[i] for i in (there & ~told.any(0)).nonzero().flatten().tolist()]:
        yield f"the student never tells {_few(never)}, of which there are test images"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
