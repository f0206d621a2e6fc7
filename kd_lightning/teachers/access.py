"""How much a teacher tells, from its gradients down to a bare class, and what a student can make of it."""

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
    logits: Tensor, access: Told, *, decimals: int | None = None, k: int = 5, abstain_below: float | None = None
) -> list[Answer]:
    """What a teacher says aloud of what it thinks.

    Args:
        logits: (N, K).
        access: ``logits`` tells everything; ``probs`` the probabilities; ``topk`` the ``k`` largest of them;
            ``label`` the class alone.
        decimals: probabilities are rounded to this many decimals, as an API would print them.
        k: number of classes told at level ``topk``.
        abstain_below: it would not say where its largest probability is smaller than this.
    """
    logits = logits.detach().double().cpu()
    probs = logits.softmax(1).numpy()
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
    """Answers (N, K) of any level as logits, so that one response loss serves all of them.

    Below ``logits`` they are log-probabilities: ``softmax`` of the result is the answer that was given.

    Args:
        answers: of the teacher's level, no abstentions among them.
        teacher: who gave them.
        smoothing: mass that a bare class spreads evenly over all K.
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
    # an answer rounded to 0 means "less than half of the last decimal", not "impossible"
    floor = 0.5 * 10.0**-teacher.decimals if teacher.decimals is not None else math.exp(-30)
    return torch.from_numpy(np.log(np.maximum(probs, floor))).float()


def malformed(answer: object, teacher: Described) -> str | None:
    """What is wrong with an answer, None if nothing is."""
    kinds = {"logits": Probs, "probs": Probs, "topk": TopK, "label": Label}
    if isinstance(answer, Abstained):
        return None
    if not isinstance(answer, kinds[teacher.access]):
        return f"it told {type(answer).__name__}, expected {kinds[teacher.access].__name__} at access {teacher.access}"
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
        return "a number that is not finite"
    rounding = 0.0 if teacher.decimals is None else len(values) * 10.0**-teacher.decimals
    if teacher.access != "logits" and (min(values) < 0 or sum(values) > 1.01 + rounding):
        return f"no probabilities: they reach from {min(values):g} to {max(values):g} and add up to {sum(values):g}"
    return None
