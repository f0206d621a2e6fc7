"""SSKD's losses (Xu et al., ECCV 2020): which image a turned one was made of, and answers to turned images.

Rows are view by view: first the N images themselves, then N of each further view in the same order. A teacher is
wrong about some of the turned images; of those only a share is imitated, the least wrong first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.features import full_precision
from kd_lightning.losses.response import check_same_shape, kl


@full_precision
def which_image(student: Tensor, teacher: Tensor | None = None, *, views: int = 4) -> Tensor:
    """Cross-entropy of the cosine similarities of every turned image to all images: the teacher's head learns by it.

    Args:
        student: embeddings (V N, D), V = ``views``; of whichever network learns.
        teacher: not used.
        views: V, with the images themselves.
    """
    similarity, own = _similarities(student, views)
    return F.cross_entropy(similarity, own)


@full_precision
def similarities(
    student: Tensor, teacher: Tensor, *, views: int = 4, temperature: float = 0.5, wrong: float = 0.75
) -> Tensor:
    """T^2 KL of the softened similarities of turned images to images: the paper's L_ss.

    Args:
        student: embeddings (V N, D), V = ``views``.
        teacher: embeddings (V N, E).
        views: V, with the images themselves.
        temperature: T.
        wrong: share of the turned images for which the teacher finds another image more similar.
    """
    (s, own), (t, _) = _similarities(student, views), _similarities(teacher, views)
    return _mean(kl(s, t, temperature=temperature, reduction="none"), least_wrong(t, own, wrong))


@full_precision
def answers_to_views(
    student: Tensor, teacher: Tensor, *, labels: Tensor, views: int = 4, temperature: float = 4.0, wrong: float = 1.0
) -> Tensor:
    """T^2 KL of the answers to turned images only: the paper's L_T.

    Args:
        student: logits (V N, K), V = ``views``.
        teacher: logits (V N, K).
        labels: (V N,).
        views: V, with the images themselves.
        temperature: T.
        wrong: share of the turned images that the teacher misclassifies.
    """
    check_same_shape(student, teacher)
    first = len(student) // views
    s, t, y = student[first:], teacher[first:], labels[first:]
    return _mean(kl(s, t, temperature=temperature, reduction="none"), least_wrong(t, y, wrong))


def least_wrong(answers: Tensor, labels: Tensor, share: float) -> Tensor:
    """Whether each row counts (N,): its label is the first answer, or it is among ``share`` of the others.

    Of those the least wrong count first. No value is read from the device.

    Args:
        answers: scores (N, K).
        labels: (N,).
        share: of the others, rounded down; how wrong a row is tells the number of higher scores.
    """
    rank = (answers > answers.gather(1, labels[:, None])).sum(1)
    wrong = (rank > 0).sum()
    number = len(rank) - wrong + (wrong * share).floor()
    counts = torch.arange(len(rank), device=rank.device) < number
    return torch.zeros_like(counts).scatter(0, torch.argsort(rank, stable=True), counts)


def _mean(each: Tensor, counts: Tensor) -> Tensor:
    """Mean of the rows that count."""
    return (each * counts).sum() / counts.sum()


def _similarities(embeddings: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities ((V - 1) N, N) of turned images to images, and the position of each one's own image.

    Raises:
        ValueError: the rows are not ``views`` times as many as something.
    """
    if len(embeddings) % views:
        raise ValueError(f"expected {views} rows for each image, got {len(embeddings)}")
    rows = F.normalize(embeddings.float().flatten(1), dim=1)
    first = len(rows) // views
    own = torch.arange(first, device=rows.device).repeat(views - 1)
    return rows[first:] @ rows[:first].T, own
