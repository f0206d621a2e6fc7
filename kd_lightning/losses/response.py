"""Losses on the student's outputs, given the teacher's."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    reduction: Literal["batchmean", "mean", "none"] = "batchmean",
) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), the loss of Hinton et al. (2015).

    Args:
        student: logits (N,K) or (N,K,...); dense outputs count as one sample per position.
        teacher: logits of the same shape. Gradients flow into it too: detach it where the method does.
        temperature: T, which may be learned.
        reduction: "batchmean" sums over classes and averages over samples; "mean" also divides by K
            (ZSKT's code); "none" sums over classes only.
    """
    check_same_shape(student, teacher)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True) * temperature**2
    if reduction == "mean":
        return divergence.mean()
    if reduction in ("batchmean", "none"):
        each = divergence.sum(1)
        return each if reduction == "none" else each.mean()
    raise ValueError(f"unknown reduction {reduction!r}: take batchmean, mean or none")


def l1_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |student - teacher| over all logits, (N,K) or (N,K,H,W): DFAD (Fang et al. 2019).

    Its generator maximises the same number L, or ln(1 + L) in segmentation.
    """
    check_same_shape(student, teacher)
    return F.l1_loss(student.float(), teacher.float())


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError for different shapes, which PyTorch would silently broadcast."""
    if student.shape != teacher.shape:
        raise ValueError(f"the answers must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
