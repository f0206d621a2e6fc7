"""Losses on the student's answers to images whose targets are probabilities, or of either kind."""

from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.response import check_same_shape, kl


def imitation(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, several: bool = False) -> Tensor:
    """Distance of the student's outputs from the teacher's, for any task.

    Where an image has several labels, :func:`binary_kl`. Else outputs with one value are numbers: mean squared error,
    the task's own loss on labels; and outputs with several values are logits: :func:`kl`.

    Args:
        student: (N,1), or logits (N,K) or (N,K,...).
        teacher: of the same shape.
        temperature: T, for logits only.
        several: whether an image has several labels; a term is told it.
    """
    check_same_shape(student, teacher)
    if several:
        return binary_kl(student, teacher, temperature=temperature)
    if student.shape[1] == 1:
        return F.mse_loss(student.float(), teacher.float())
    return kl(student, teacher, temperature=temperature)


def binary_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(p || q) of each label, p = sigmoid(teacher/T) and q = sigmoid(student/T): the mean over labels and images.

    Hinton et al.'s loss for each label as a problem of two classes: a sigmoid is the softmax of a logit and 0. It
    differs from the binary cross-entropy with targets p by their entropy, so its gradient, T (q - p), is the same, and
    equal logits give 0.

    Args:
        student: logits (N,K).
        teacher: logits of the same shape.
        temperature: T.
    """
    check_same_shape(student, teacher)
    s, t = student.float() / temperature, teacher.float() / temperature
    there = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    absent = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (there + absent).mean()


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
