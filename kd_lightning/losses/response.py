"""Losses on the student's outputs, given the teacher's."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

FOR_CLASSES = ("kl", "soft_cross_entropy", "answer_cross_entropy")
"""Losses that expect logits of classes, so not for regression; :func:`imitation` serves both."""


def imitation(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Distance of the student's outputs from the teacher's, for classification and regression.

    Outputs with one value are numbers: mean squared error, the task's own loss on labels. Outputs with several values
    are logits: :func:`kl`.

    Args:
        student: (N,1), or logits (N,K) or (N,K,...).
        teacher: of the same shape.
        temperature: T, for logits only.
    """
    check_same_shape(student, teacher)
    if student.shape[1] == 1:
        return F.mse_loss(student.float(), teacher.float())
    return kl(student, teacher, temperature=temperature)


def kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Literal["batchmean", "mean"] = "batchmean",
) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), the loss of Hinton et al. (2015).

    Args:
        student: logits (N,K) or (N,K,...); dense outputs count as one sample per position.
        teacher: logits of the same shape. Gradients flow into it too: detach it where the method does.
        temperature: T.
        reduction: "batchmean" sums over classes and averages over samples; "mean" also divides by K
            (ZSKT's code).
    """
    check_same_shape(student, teacher)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True) * temperature**2
    if reduction == "mean":
        return divergence.mean()
    if reduction == "batchmean":
        return divergence.sum(1).mean()
    raise ValueError(f"unknown reduction {reduction!r}: take batchmean or mean")


def soft_cross_entropy(student: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-sum_k targets_k log softmax(student/T)_k, averaged over samples, without a factor T^2.

    The J of BSS (Heo et al., AAAI 2019), of FS-BBT and, times T^2, of ZSKD (Nayak et al., ICML 2019). It
    differs from KL by the entropy of the targets, so its gradient is the same.

    Args:
        student: logits (N,K) or (N,K,...).
        targets: probabilities of the same shape, already softened where the method softens them.
        temperature: T, of the student only.
    """
    check_same_shape(student, targets)
    return -(targets.float() * F.log_softmax(student.float() / temperature, dim=1)).sum(1).mean()


def answer_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """-sum_k p_k log softmax(student)_k, p = softmax(teacher), averaged over samples: the loss of FS-BBT.

    Its gradient is that of KL at T=1, its minimum the entropy of the teacher's answers.

    Args:
        student: logits (N,K).
        teacher: logits or log-probabilities of the same shape.
    """
    return soft_cross_entropy(student, F.softmax(teacher.float(), dim=1))


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
