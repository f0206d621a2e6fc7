"""How much student and teacher disagree: losses for generators that look for such images, and for attention."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.response import check_same_shape


def masked_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the mean of KL(teacher || student), counting only samples on whose class both agree.

    What the generator of CMI (Fang et al., IJCAI 2021) and of FastDFKD (AAAI 2022) minimises: it looks for
    images near the student's boundary and ignores an image once the two disagree on its class.
    Gradients flow through both.

    Args:
        student: logits (N,K).
        teacher: logits (N,K).
    """
    check_same_shape(student, teacher)
    log_q, log_p = F.log_softmax(student.float(), dim=1), F.log_softmax(teacher.float(), dim=1)
    agree = student.argmax(1) == teacher.argmax(1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return -(divergence * agree).mean()


def jensen_shannon(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 3.0,
    variant: Literal["paper", "code"] = "paper",
) -> Tensor:
    """Jensen-Shannon divergence of softmax(student/T) and softmax(teacher/T), averaged over samples.

    Adaptive DeepInversion (Yin et al., CVPR 2020) minimises 1 - JS over its images. "paper" is the divergence
    itself, in nats, at most ln 2: divide by ln 2 to get a value in [0,1]. "code" averages the reverse
    divergences KL(mean || each) of probabilities clamped to [.01,.99]; it reaches 1.614 and has no
    gradient above 1, where the authors clamp it; that clamp is left to the caller.

    Args:
        student: logits (N,K).
        teacher: logits (N,K).
        temperature: T.
        variant: see above.
    """
    check_same_shape(student, teacher)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    if variant == "paper":
        log_mean = torch.logaddexp(log_q, log_p) - math.log(2)
        divergences = [F.kl_div(log_mean, each, reduction="batchmean", log_target=True) for each in (log_q, log_p)]
    elif variant == "code":
        q, p = log_q.exp(), log_p.exp()
        mean = ((q + p) / 2).clamp(0.01, 0.99)
        divergences = [F.kl_div(each.clamp(0.01, 0.99).log(), mean, reduction="batchmean") for each in (q, p)]
    else:
        raise ValueError(f"unknown variant {variant!r}: take paper or code")
    return torch.stack(divergences).mean()


def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over blocks of the mean squared difference of attention maps.

    ZSKT (Micaelli and Storkey, NeurIPS 2019) weighs it by 250 in the student's loss.
    The attention of a map (N,C,H,W) is the channel mean of its squares, flattened and scaled to length 1
    (Zagoruyko and Komodakis, ICLR 2017). Channels may differ, sizes may not.

    Raises:
        ValueError: no map, a different number of maps, or sizes that differ.
    """
    return attention_distance([attention(s) for s in student_maps], [attention(t) for t in teacher_maps])


def attention(x: Tensor) -> Tensor:
    """Attention (N,H,W) of a map (N,C,H,W): the channel mean of its squares, scaled to length 1 per image."""
    size = x.float().square().mean(1)
    return F.normalize(size.flatten(1), dim=1).view_as(size)


def attention_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """:func:`attention_transfer` for attentions (N,H,W) that are already computed.

    Raises:
        ValueError: no attention, a different number of them, or sizes that differ.
    """
    if not student or len(student) != len(teacher):
        raise ValueError(f"need pairs of maps, got {len(student)} of student, {len(teacher)} of teacher")
    terms = []
    for s, t in zip(student, teacher, strict=True):
        if s.shape != t.shape:
            raise ValueError(f"attention maps must have one size, got {tuple(s.shape)} and {tuple(t.shape)}")
        terms.append(F.mse_loss(s, t))
    return torch.stack(terms).sum()
