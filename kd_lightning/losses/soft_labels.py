"""Losses on the student's answers to images whose targets are probabilities, or of either kind."""

from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.response import check_same_shape, kl


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
