"""What a network says aloud of what it thinks."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kd_lightning.teacher.answers import Abstained, Answer, Label, Probs, Told, TopK


def told(
    logits: Tensor, access: Told, *, decimals: int | None = None, k: int = 5, abstain_below: float | None = None
) -> list[Answer]:
    """Answers to N images.

    Args:
        logits: (N, K).
        access: ``probs`` tells the probabilities, ``topk`` the ``k`` largest of them, ``label`` the class alone.
        decimals: probabilities are rounded to this many decimals.
        k: number of classes told at level ``topk``.
        abstain_below: nothing is told where the largest probability is smaller.
    """
    probs = logits.detach().double().cpu().softmax(1).numpy()
    rounded = probs if decimals is None else probs.round(decimals)
    answers: list[Answer]
    if access == "label":
        answers = [Label(label) for label in probs.argmax(1).tolist()]
    elif access == "probs":
        answers = [Probs(tuple(row)) for row in rounded.tolist()]
    else:
        top = np.argsort(-probs, axis=1, kind="stable")[:, :k]
        values = np.take_along_axis(rounded, top, 1)
        answers = [TopK(tuple(c), tuple(v)) for c, v in zip(top.tolist(), values.tolist(), strict=True)]
    unsure = set(np.flatnonzero(probs.max(1) < (abstain_below or 0.0)).tolist())
    return [Abstained("not sure enough") if i in unsure else answers[i] for i in range(len(answers))]
