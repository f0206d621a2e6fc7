"""Access levels of a teacher: what it reveals (logits down to the label), and how its answers become targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from kd_lightning.teachers.answer_types import Abstained, Answer, Described, Label, Probs, Told, TopK

LEVELS = ("white", "logits", "probs", "topk", "label")


def told(
    logits: Tensor,
    access: Told,
    *,
    decimals: int | None = None,
    k: int = 5,
    abstain_below: float | None = None,
    several: bool = False,
) -> list[Answer]:
    """Reduce logits to the answers of an access level.

    Args:
        logits: (N, K).
        access: ``logits``; ``probs``; ``topk``, the ``k`` largest probabilities; ``label``, only the class.
        decimals: decimals to which probabilities are rounded, as an API would print them; None for no rounding.
        k: number of classes in a ``topk`` answer.
        abstain_below: abstain where the largest probability is below this; None for never.
        several: probabilities are of each label by itself.

    Returns:
        N answers, in the order of the rows.
    """
    logits = logits.detach().double().cpu()
    probs = (logits.sigmoid() if several else logits.softmax(1)).numpy()
    answers: list[Answer]
    if access == "logits":
        answers = [Probs(tuple(row)) for row in logits.tolist()]
    elif access == "label":
        answers = [Label(label) for label in logits.argmax(1).tolist()]
    else:
        rounded = probs if decimals is None else probs.round(decimals)
        if access == "probs":
            answers = [Probs(tuple(row)) for row in rounded.tolist()]
        else:
            top = np.argsort(-probs, axis=1, kind="stable")[:, :k]
            values = np.take_along_axis(rounded, top, 1)
            answers = [TopK(tuple(c), tuple(v)) for c, v in zip(top.tolist(), values.tolist(), strict=True)]
    if abstain_below is not None:
        for i in np.flatnonzero(probs.max(1) < abstain_below).tolist():
            answers[i] = Abstained("not sure enough")
    return answers


def usable(answers: Sequence[Answer], teacher: Described, *, smoothing: float = 0.1) -> Tensor:
    """Answers of any access level as logits (N, K), so that one response loss serves all levels.

    Below ``logits`` they are log-probabilities: ``softmax`` of the result is the answer. Where an image has several
    labels, ``sigmoid`` of it is.

    Args:
        answers: N answers of the teacher's access level, without abstentions.
        teacher: the teacher that gave them.
        smoothing: probability mass of a ``label`` answer spread evenly over all K classes.
    """
    shape = (len(answers), teacher.num_classes)
    if teacher.access == "logits":
        return torch.tensor([cast(Probs, a).values for a in answers], dtype=torch.float32).view(shape)
    if teacher.access == "label":
        probs = np.full(shape, smoothing / shape[1])
        labels = [cast(Label, a).label for a in answers]
        probs[np.arange(len(answers)), labels] += 1 - smoothing
        return torch.from_numpy(np.log(np.maximum(probs, math.exp(-30)))).float()
    probs = np.empty(shape)
    if teacher.access == "topk":
        for row, answer in zip(probs, cast(Sequence[TopK], answers), strict=True):
            untold, rest = max(0.0, 1 - sum(answer.values)), max(1, len(row) - len(answer.values))
            row[:] = untold / rest
            row[list(answer.classes)] = answer.values
    else:
        probs[:] = np.array([cast(Probs, a).values for a in answers], np.float64).reshape(shape)
    # a probability rounded to 0 means "less than half of the last decimal", not "impossible"
    floor = 0.5 * 10.0**-teacher.decimals if teacher.decimals is not None else math.exp(-30)
    if teacher.several:
        there, absent = np.maximum(probs, floor), np.maximum(1 - probs, floor)
        return torch.from_numpy(np.log(there) - np.log(absent)).float()
    return torch.from_numpy(np.log(np.maximum(probs, floor))).float()


def malformed(answer: object, teacher: Described) -> str | None:
    """What is wrong with an answer of this teacher; None if it is valid."""
    kinds = {"logits": Probs, "probs": Probs, "topk": TopK, "label": Label}
    if isinstance(answer, Abstained):
        return None
    if not isinstance(answer, kinds[teacher.access]):
        return f"got {type(answer).__name__}, expected {kinds[teacher.access].__name__} at access {teacher.access}"
    classes = teacher.num_classes
    if isinstance(answer, Label):
        return None if 0 <= answer.label < classes else f"class {answer.label} of {classes} classes"
    assert isinstance(answer, Probs | TopK)
    values = answer.values
    if isinstance(answer, Probs) and len(values) != classes:
        return f"{len(values)} values for {classes} classes"
    if isinstance(answer, TopK):
        if not 1 <= len(values) == len(set(answer.classes)) <= teacher.k:
            return f"{len(values)} numbers for {len(set(answer.classes))} classes, expected 1 to {teacher.k} of each"
        if not all(0 <= c < classes for c in answer.classes):
            return f"classes {answer.classes} of {classes}"
    if not all(map(math.isfinite, values)):
        return "a value that is not finite"
    rounding = 0.0 if teacher.decimals is None else len(values) * 10.0**-teacher.decimals
    most = max(values) if teacher.several else sum(values)
    if teacher.access != "logits" and (min(values) < 0 or most > 1.01 + rounding):
        return f"not probabilities: they range from {min(values):g} to {max(values):g} and sum to {sum(values):g}"
    return None
