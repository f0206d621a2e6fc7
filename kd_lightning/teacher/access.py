"""How much a teacher tells: from its gradients down to a bare class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVELS = ("white", "logits", "probs", "topk", "label")


def degrade(logits: Tensor, level: str, *, decimals: int | None = None, k: int = 5, smoothing: float = 0.1) -> Tensor:
    """What is left of ``logits`` at an access level, again usable as logits.

    Every level is returned as log-probabilities, so that one response loss serves all of them:
    ``softmax`` of the result is the answer that was given.

    Args:
        logits: (N, K).
        level: ``logits`` passes everything; ``probs`` the probabilities; ``topk`` the ``k`` largest of
            them, what is missing spread evenly over the rest; ``label`` the class alone, smoothed.
        decimals: probabilities are rounded to this many decimals, as an API would print them.
        k: number of classes told at level ``topk``.
        smoothing: mass that ``label`` spreads evenly over all K classes.

    Raises:
        ValueError: unknown level.
    """
    if level in ("white", "logits"):
        return logits
    num_classes = logits.shape[1]
    probs = logits.float().softmax(1)
    if level == "label":
        answer = torch.full_like(probs, smoothing / num_classes)
        answer.scatter_(1, probs.argmax(1, keepdim=True), 1 - smoothing + smoothing / num_classes)
        return answer.log()
    if decimals is not None:
        probs = (probs * 10**decimals).round() / 10**decimals
    if level == "topk" and k < num_classes:
        top, classes = probs.topk(k, dim=1)
        rest = (1 - top.sum(1, keepdim=True)).clamp_min(0) / (num_classes - k)
        probs = rest.expand_as(probs).scatter(1, classes, top)
    elif level not in ("probs", "topk"):
        raise ValueError(f"teacher.access={level!r}: expected one of {', '.join(LEVELS)}")
    # an answer rounded to 0 means "less than half of the last decimal", not "impossible"
    floor = 0.5 * 10.0**-decimals if decimals is not None else math.exp(-30)
    return probs.clamp_min(floor).log()
