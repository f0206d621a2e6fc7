"""Losses of methods that look for images on which two students disagree, and targets of log-probabilities."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.response import check_same_shape, kl, l1_logits


def disagreement(one: Tensor, other: Tensor, *, variant: str = "disguide") -> Tensor:
    """How far two students disagree, a scalar.

    Args:
        one: logits (N, K).
        other: logits of the same shape.
        variant: ``disguide`` (Rosenthal et al., AAAI 2023), the standard deviation of the two probabilities of a class,
            |p1 - p2| / sqrt(2), averaged over classes and images; ``dual_students`` (Beetham et al., ICLR 2023), the
            mean |difference| of the logits.
    """
    if variant == "dual_students":
        return l1_logits(one, other)
    if variant != "disguide":
        raise ValueError(f"unknown variant {variant!r}: take disguide or dual_students")
    check_same_shape(one, other)
    p, q = (logits.float().softmax(1) for logits in (one, other))
    return (p - q).abs().mean() / math.sqrt(2)


def imbalance(probs: Tensor, *, eps: float = 1e-6) -> Tensor:
    """sum_c p_c ln p_c of the mean prediction p, from -ln K where all classes are predicted equally often, to 0.

    Args:
        probs: predictions (N, K), of which p is the mean.
        eps: added to p, as in DisGUIDE's code.
    """
    mean = probs.float().mean(0) + eps
    return (mean * mean.log()).sum()


def centred(logits: Tensor) -> Tensor:
    """Log-probabilities less their mean over the classes: logits (N, K) up to a constant, known from probabilities."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return log_p - log_p.mean(1, keepdim=True)


def told_loss(student: Tensor, answers: Tensor, *, access: str, loss: str = "kl") -> Tensor:
    """Distance of a student's logits from what the teacher told.

    Args:
        student: logits (N, K).
        answers: (N, K), usable as logits.
        access: of the teacher; of ``label`` only the class counts, by cross-entropy.
        loss: ``kl``, or ``l1`` of the logits to the centred log-probabilities.
    """
    if access == "label":
        return F.cross_entropy(student.float(), answers.argmax(1))
    if loss == "l1":
        return l1_logits(student, centred(answers))
    if loss != "kl":
        raise ValueError(f"unknown loss {loss!r}: take kl or l1")
    return kl(student, answers)
