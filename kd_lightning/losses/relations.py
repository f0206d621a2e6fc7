"""Losses on the relations between the samples of a batch: they compare matrices over pairs of samples.

Features are of one layer, (N, ...), taken as vectors; lengths of student's and teacher's may differ where nothing else
is said. Each loss is a function of the whole batch, not a mean over samples.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.features import Features, check_equal, full_precision, listed, vectors


@full_precision
def similarity_preserving(student: Features, teacher: Features) -> Tensor:
    """Squared distance of similarity matrices, over N^2: SP (Tung & Mori, ICCV 2019, Eq. 4).

    A matrix holds the products of the features of all pairs of samples, each row of unit length. Of several layers
    the losses are added.
    """
    losses = []
    for s, t in zip(listed(student), listed(teacher), strict=True):
        difference = _similarities(s.flatten(1)) - _similarities(t.flatten(1))
        losses.append(difference.square().mean())
    return torch.stack(losses).sum()


@full_precision
def correlation_congruence(
    student: Features,
    teacher: Features,
    *,
    variant: Literal["paper", "code"] = "code",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """CC (Peng et al., ICCV 2019), of which there are two different losses.

    ``paper`` compares kernel matrices K = exp(-2 gamma) sum_p (2 gamma)^p / p! (e_i.e_j)^p, the Taylor
    series of a Gaussian kernel: ||K_s - K_t|| / N^2. ``code``, which the authors gave to Tian et al. (2020), is the
    mean over i of sum_d |s - t|_(i,d) |s - t|_(i+1,d): it depends on the order of the samples.

    Args:
        student: embeddings (N, D).
        teacher: embeddings (N, D).
        variant: which of the two.
        gamma: of the kernel.
        order: last power of the series.
    """
    s, t = vectors(student), vectors(teacher)
    check_equal(s, t)
    if variant == "code":
        apart = (s - t).abs()
        return (apart[:-1] * apart[1:]).sum(1).mean()
    difference = _taylor_kernel(s, gamma, order) - _taylor_kernel(t, gamma, order)
    return torch.linalg.vector_norm(difference) / len(s) ** 2


@full_precision
def relational(student: Features, teacher: Features, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Distances of pairs and angles of triples of samples: RKD (Park et al., CVPR 2019).

    Huber losses of distances, each divided by the mean distance of its network, and of cosines. It takes memory for
    N^3 numbers.

    Args:
        student: features (N, D).
        teacher: features (N, E).
        distance: weight of the distances, 25 in Tian et al. (2020), 1 in the authors' code.
        angle: weight of the angles, 50 and 2.
    """
    s, t = vectors(student), vectors(teacher)
    apart = F.smooth_l1_loss(_relative_distances(s), _relative_distances(t))
    return distance * apart + angle * F.smooth_l1_loss(_cosines(s), _cosines(t))


@full_precision
def probabilistic_transfer(student: Features, teacher: Features, *, eps: float = 1e-7) -> Tensor:
    """KL between the teacher's and the student's probabilities of pairs: PKT (Passalis & Tefas, ECCV 2018).

    A row of probabilities is (1 + cosine) / 2 of one sample to all, divided by its sum. Averaged over all pairs, as in
    the authors' code, where the paper sums: hence weights of 10^4.
    """
    p, q = _pair_probabilities(vectors(teacher)), _pair_probabilities(vectors(student))
    return (p * ((p + eps).log() - (q + eps).log())).mean()


def _similarities(rows: Tensor) -> Tensor:
    return F.normalize(rows @ rows.T)


def _taylor_kernel(rows: Tensor, gamma: float, order: int) -> Tensor:
    products = rows @ rows.T
    terms = [(2 * gamma) ** p / math.factorial(p) * products**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)


def _relative_distances(rows: Tensor) -> Tensor:
    """Distances (N, N), divided by the mean of those that are not 0."""
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / (distances.sum() / (distances > 0).sum().clamp(min=1)).clamp(min=1e-12)


def _cosines(rows: Tensor) -> Tensor:
    """Cosine (N, N, N) of the angle at sample i between samples j and k."""
    directions = F.normalize(rows[None] - rows[:, None], dim=2)
    return directions @ directions.mT


def _pair_probabilities(rows: Tensor) -> Tensor:
    unit = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + 1e-7)
    similar = (unit @ unit.T + 1) / 2
    return similar / similar.sum(1, keepdim=True)
