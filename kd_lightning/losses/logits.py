"""Losses on logits that take them apart: by class, by pair, or by their scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.features import full_precision
from kd_lightning.losses.response import check_same_shape, kl


def decoupled(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD): DKD (Zhao et al., CVPR 2022, Eq. 7).

    TCKD is the KL of [p_y, 1 - p_y], NCKD the KL of the probabilities of the other classes among themselves. KL itself
    is TCKD + (1 - p_y of the teacher) NCKD, for each sample.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        labels: y, (N,).
        alpha: weight of TCKD.
        beta: weight of NCKD.
        temperature: T.
    """
    check_same_shape(student, teacher)
    s, t = student.float() / temperature, teacher.float() / temperature
    other = torch.ones_like(s, dtype=torch.bool).scatter_(1, labels[:, None], False)
    target = F.kl_div(
        _target_or_not(s, labels, other), _target_or_not(t, labels, other), reduction="none", log_target=True
    )
    count = s.shape[1] - 1
    rest_s, rest_t = (F.log_softmax(z[other].view(-1, count), dim=1) for z in (s, t))
    others = F.kl_div(rest_s, rest_t, reduction="none", log_target=True)
    return temperature**2 * (alpha * target.sum(1).mean() + beta * others.sum(1).mean())


def dist(
    student: Tensor, teacher: Tensor, *, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Correlations instead of equality: DIST (Huang et al., NeurIPS 2022), times T^2.

    inter * (1 - mean over samples of corr over classes) + intra * (1 - mean over classes of corr over the batch), of
    softened probabilities. The second depends on the whole batch.

    Args:
        student: logits (N, K), or (N, K, ...), whose positions count as samples.
        teacher: logits of the same shape.
        inter: weight of the relation between classes, the paper's beta.
        intra: weight of the relation between samples, the paper's gamma.
        temperature: T.
    """
    check_same_shape(student, teacher)
    p, q = (
        F.softmax(z.float().movedim(1, -1).reshape(-1, z.shape[1]) / temperature, dim=1) for z in (teacher, student)
    )
    between_classes, between_samples = 1 - _correlation(q, p).mean(), 1 - _correlation(q.T, p.T).mean()
    return temperature**2 * (inter * between_classes + intra * between_samples)


def standardised_kl(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """:func:`kl` of logits with mean 0 and standard deviation 1 each (Sun et al., CVPR 2024, Alg. 1), times T^2.

    The student is free to have logits of another scale and shift than the teacher.
    """
    return kl(_standardised(student), _standardised(teacher), temperature=temperature)


@full_precision
def multi_level(
    student: Tensor,
    teacher: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    views: int = 1,
    variant: Literal["paper", "code"] = "paper",
) -> Tensor:
    """KL, and distances of the products of probabilities over classes and over samples: MLKD (Jin et al., CVPR 2023).

    For each T: T^2 KL, ||p p^T - q q^T||^2 / N over pairs of samples and ||p^T p - q^T q||^2 / K over
    pairs of classes; all are added, for each view of the images by itself.

    Deviations of the authors' code, which is ``code`` and has two views:
        * In the first view, KL and the distance of samples are multiplied by the share of images of which the teacher
          is at most as sure as of the median one, the distance of classes by the share of classes that it expects at
          most as often as the median one: about a half. (It masks images and classes, but after the mean.)
        * The second view has KL only, and where T is 2 or 6 it is the first view's.

    Args:
        student: logits (N, K), or (V N, K) view by view.
        teacher: logits of the same shape.
        temperatures: T.
        views: V; the authors' are a weakly and a strongly augmented one.
        variant: which of the two.

    Raises:
        ValueError: different shapes, or ``code`` with other than two views.
    """
    check_same_shape(student, teacher)
    pairs = list(zip(student.chunk(views), teacher.chunk(views), strict=True))
    if variant == "paper":
        return torch.stack([each for s, t in pairs for degree in temperatures for each in _levels(s, t, degree)]).sum()
    if views != 2:
        raise ValueError(f"variant=code compares two views, got {views}: set views to 2")
    weak, strong = pairs
    p = F.softmax(weak[1].float(), dim=1)
    unsure, rare = _up_to_median(p.amax(1)), _up_to_median(p.sum(0))
    losses = []
    for temperature in temperatures:
        answers, samples, classes = _levels(*weak, temperature)
        losses += [unsure * (answers + samples), rare * classes]
        losses.append(answers if temperature in (2, 6) else kl(*strong, temperature=temperature))
    return torch.stack(losses).sum()


def smoothed_labels(student: Tensor, teacher: Tensor | None = None, *, labels: Tensor, epsilon: float = 0.1) -> Tensor:
    """Cross-entropy with 1 - epsilon on the label and epsilon on all classes alike (Szegedy et al., CVPR 2016).

    Args:
        student: logits (N, K).
        teacher: not used.
        labels: (N,).
        epsilon: share of the uniform distribution.
    """
    return F.cross_entropy(student.float(), labels, label_smoothing=epsilon)


def virtual_teacher(
    student: Tensor, teacher: Tensor | None = None, *, labels: Tensor, temperature: float = 20.0, correct: float = 0.99
) -> Tensor:
    """KL from a teacher that is written down: Tf-KD_reg (Yuan et al., CVPR 2020).

    Its probabilities, ``correct`` for the label and the rest for all others alike, are softened as if they were logits:
    softmax(p / T), which is almost uniform. The student's logits are not softened. Summed over classes, where the
    authors' code takes the mean: K times as much.

    Args:
        student: logits (N, K).
        teacher: not used.
        labels: (N,).
        temperature: T.
        correct: probability of the label.
    """
    s = student.float()
    wrong = (1 - correct) / (s.shape[1] - 1)
    written = torch.full_like(s, wrong).scatter_(1, labels[:, None], correct)
    log_p = F.log_softmax(written / temperature, dim=1)
    return F.kl_div(F.log_softmax(s, dim=1), log_p, reduction="batchmean", log_target=True)


def _target_or_not(z: Tensor, labels: Tensor, other: Tensor) -> Tensor:
    """Log-probabilities (N, 2) of the label and of all other classes together."""
    whole = z.logsumexp(1, keepdim=True)
    rest = z.masked_fill(~other, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([z.gather(1, labels[:, None]), rest], 1) - whole


def _levels(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """MLKD's three distances of logits (N, K): of answers, of pairs of samples and of pairs of classes."""
    q, p = (F.softmax(z.float() / temperature, dim=1) for z in (student, teacher))
    samples = (q @ q.T - p @ p.T).square().sum() / len(q)
    classes = (q.T @ q - p.T @ p).square().sum() / q.shape[1]
    return kl(student, teacher, temperature=temperature), samples, classes


def _up_to_median(values: Tensor) -> Tensor:
    """The share of values that are at most their median."""
    return (values <= values.quantile(0.5)).float().mean()


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (N,) of the rows of two matrices."""
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8)


def _standardised(z: Tensor) -> Tensor:
    """Logits (N, K) with mean 0 and standard deviation 1."""
    z = z.float()
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)
