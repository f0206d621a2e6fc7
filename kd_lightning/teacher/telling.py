"""What a network says aloud of what it thinks."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kd_lightning.teacher.answers import Answer, Label, Probs, Told, TopK


def told(logits: Tensor, access: Told, *, decimals: int | None = None, k: int = 5) -> list[Answer]:
    """Answers to N images.

    Args:
        logits: (N, K).
        access: ``probs`` tells the probabilities, ``topk`` the ``k`` largest of them, ``label`` the class alone.
        decimals: probabilities are rounded to this many decimals.
        k: number of classes told at level ``topk``.
    """
    logits = logits.detach().double().cpu()
    if access == "label":
        return [Label(label) for label in logits.argmax(1).tolist()]
    probs = logits.softmax(1).numpy()
    rounded = probs if decimals is None else probs.round(decimals)
    if access == "probs":
        return [Probs(tuple(row)) for row in rounded.tolist()]
    top = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(rounded, top, 1)
    return [TopK(tuple(c), tuple(v)) for c, v in zip(top.tolist(), values.tolist(), strict=True)]
