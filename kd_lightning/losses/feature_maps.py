"""Losses on feature maps, given the teacher's.

Features are maps (N, C, H, W) of one layer, or a list of several layers from the first to the last, whose losses are
added. Of two maps of different height and width, the larger is averaged down to the smaller.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.features import Features, check_equal, full_precision, listed, pairs


def squared_difference(student: Features, teacher: Features, *, total: bool = False) -> Tensor:
    """Mean of (student - teacher)^2 over all values of a layer: the hint of FitNets (Romero et al., ICLR 2015, Eq. 3).

    The paper takes half the sum over values instead of the mean. On pooled features (N, D) it is the L2 loss. With
    ``total`` the sum over values and images, as HND and GHND have it.

    Args:
        student: features after an adapter, if the teacher's have another shape.
        teacher: features.
        total: see above.
    """
    losses = []
    for s, t in pairs(student, teacher):
        check_equal(s, t)
        losses.append(F.mse_loss(s, t, reduction="sum" if total else "mean"))
    return torch.stack(losses).sum()


def attention(student: Features, teacher: Features, *, variant: Literal["paper", "code"] = "code") -> Tensor:
    """Distance of attention maps Q = vec(sum_c F_c^2) of unit length: AT (Zagoruyko & Komodakis, ICLR 2017, Eq. 2).

    ``paper`` averages ||Q_s - Q_t|| over images. ``code`` averages (Q_s - Q_t)^2 over images and positions, which is
    some hundred times smaller: a weight belongs to one of the two. Numbers of channels may differ.
    """
    losses = []
    for s, t in pairs(student, teacher):
        difference = _attention_map(s) - _attention_map(t)
        losses.append(_lengths(difference).mean() if variant == "paper" else difference.square().mean())
    return torch.stack(losses).sum()


def factor_transfer(student: Features, teacher: Features, *, variant: Literal["paper", "code"] = "paper") -> Tensor:
    """Mean absolute difference of factors of unit length: FT (Kim et al., NeurIPS 2018).

    ``paper`` compares all values of the factors, ``code`` (Tian et al. 2020) their attention maps.

    Args:
        student: the translator's factors (N, M, H, W).
        teacher: the paraphraser's factors, of the same shape.
        variant: which of the two.
    """
    losses = []
    for s, t in pairs(student, teacher):
        if variant == "paper":
            check_equal(s, t)
            unit_s, unit_t = F.normalize(s.flatten(1)), F.normalize(t.flatten(1))
        else:
            unit_s, unit_t = _attention_map(s), _attention_map(t)
        losses.append((unit_s - unit_t).abs().mean())
    return torch.stack(losses).sum()


@full_precision
def neuron_selectivity(student: Features, teacher: Features) -> Tensor:
    """Squared MMD between the channels of both, with the kernel (a.b)^2: NST (Huang & Wang 2017).

    Each channel is a vector over positions, of unit length; channels of one image are compared. Numbers of channels
    may differ.
    """
    losses = []
    for s, t in pairs(student, teacher):
        unit_s, unit_t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)
        within = _kernel(unit_s, unit_s).mean() + _kernel(unit_t, unit_t).mean()
        losses.append(within - 2 * _kernel(unit_s, unit_t).mean())
    return torch.stack(losses).sum()


@full_precision
def solution_flow(student: Features, teacher: Features, *, variant: Literal["paper", "code"] = "code") -> Tensor:
    """Distance of the Gram matrices between each layer and the next: FSP (Yim et al., CVPR 2017, Eq. 1 and 2).

    G = mean over positions of outer(F_l, F_(l+1)). ``paper`` brings both maps to one size by max pooling, sums squares
    over the matrix and averages over images; ``code`` (Tian et al. 2020) takes average pooling and the mean of squares.

    Args:
        student: maps of at least two layers.
        teacher: maps of as many layers, each with as many channels as the student's.
        variant: which of the two.
    """
    students, teachers = listed(student), listed(teacher)
    if len(students) != len(teachers) or len(students) < 2:
        raise ValueError(f"expected two or more layers of each network, got {len(students)} and {len(teachers)}")
    losses = []
    for (s, t), (s_next, t_next) in pairwise(zip(students, teachers, strict=True)):
        flow_s, flow_t = _flow(s, s_next, variant), _flow(t, t_next, variant)
        check_equal(flow_s, flow_t)
        squares = (flow_s - flow_t).square()
        losses.append(squares.sum((1, 2)).mean() if variant == "paper" else squares.mean())
    return torch.stack(losses).sum()


def activation_boundary(student: Features, teacher: Features, *, margin: float = 1.0, scale: float = 0.003) -> Tensor:
    """Make each neuron fire where the teacher's fires, by a margin: AB (Heo et al., AAAI 2019).

    (s + m)^2 where s > -m and the teacher does not fire, (s - m)^2 where s <= m and it does; summed over values,
    averaged over images. Each layer counts half as much as the next.

    Args:
        student: maps before the activation, after a connector.
        teacher: maps before the activation.
        margin: m.
        scale: factor of all, 3/1000 in the authors' code.
    """
    losses: list[Tensor] = []
    for s, t in pairs(student, teacher):
        check_equal(s, t)
        wrong = torch.where(t > 0, (margin - s).clamp(min=0), (margin + s).clamp(min=0))
        losses = [loss / 2 for loss in losses] + [wrong.square().flatten(1).sum(1).mean()]
    return scale * torch.stack(losses).sum()


def partial_l2(student: Features, teacher: Features, *, margins: list[Tensor] | None = None) -> Tensor:
    """Squared distance from the teacher's margin ReLU, except where both stay below it: OFD (Heo et al., ICCV 2019).

    Targets are max(t, m), m < 0 the channel's mean negative response; no loss where s <= target <= 0.
    Summed over values, averaged over images; each layer counts half as much as the next.

    Args:
        student: maps before the activation, after a connector.
        teacher: maps before the activation.
        margins: m of each layer, (C,) each, as :func:`expected_negative` gives it; None: the means of this batch.
    """
    losses: list[Tensor] = []
    for layer, (s, t) in enumerate(pairs(student, teacher)):
        check_equal(s, t)
        negative = t < 0
        m = (t * negative).sum((0, 2, 3)) / negative.sum((0, 2, 3)).clamp(min=1) if margins is None else margins[layer]
        target = torch.maximum(t, m.view(1, -1, 1, 1))
        away = (s - target).square() * ((s > target) | (target > 0))
        losses = [loss / 2 for loss in losses] + [away.flatten(1).sum(1).mean()]
    return torch.stack(losses).sum()


def expected_negative(mean: Tensor, std: Tensor) -> Tensor:
    """E[x | x < 0] of a normal variable, the margin of OFD; -3 std where x < 0 is rarer than 0.001.

    Args:
        mean: (C,), such as a batch norm's bias.
        std: (C,), positive, such as the absolute value of its weight.
    """
    normal = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(std))
    below = normal.cdf(-mean / std)
    expected = mean - std * normal.log_prob(-mean / std).exp() / below.clamp(min=1e-3)
    return torch.where(below > 1e-3, expected, -3 * std)


@full_precision
def channel_correlation(
    student: Features, teacher: Features, *, divisor: Literal["images", "pairs"] = "images"
) -> Tensor:
    """Squared distance of the correlations between channels: ICKD (Liu et al., ICCV 2021).

    G (C, C) holds the products of an image's channels, each row of unit length; ||G_s - G_t||^2 is divided by C and the
    number N of images (the authors' code for CIFAR) or by C and N^2 (``pairs``, theirs for ImageNet): a weight belongs
    to one of the two.
    """
    losses = []
    for s, t in pairs(student, teacher):
        rows_s, rows_t = _correlations(s), _correlations(t)
        check_equal(rows_s, rows_t)
        loss = (rows_s - rows_t).square().sum((1, 2)).mean() / rows_s.shape[1]
        losses.append(loss / len(rows_s) if divisor == "pairs" else loss)
    return torch.stack(losses).sum()


def hierarchical_context(student: Features, teacher: Features) -> Tensor:
    """Mean squared difference of maps at several resolutions: ReviewKD's HCL (Chen et al., CVPR 2021).

    The full map counts 1, its averages over 4x4, 2x2 and 1x1 parts half of the one before, those that are no
    smaller than the map nothing; the weights of a layer are divided by their sum.

    Args:
        student: the fused maps.
        teacher: maps of the same shapes.
    """
    losses = []
    for s, t in pairs(student, teacher):
        check_equal(s, t)
        sizes = [size for size in (4, 2, 1) if size < s.shape[2]]
        nested = s.shape[2] % 4 == 0 and s.shape[3] % 4 == 0  # means of equal parts are those of their means
        levels = [(s, t)]
        for size in sizes:
            a, b = levels[-1] if nested else (s, t)
            levels.append((F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)))
        weights = [0.5**level for level in range(len(levels))]
        found = [weight * F.mse_loss(a, b) for weight, (a, b) in zip(weights, levels, strict=True)]
        losses.append(torch.stack(found).sum() / sum(weights))
    return torch.stack(losses).sum()


def _attention_map(maps: Tensor) -> Tensor:
    """(N, H*W) of unit length."""
    return F.normalize(maps.square().mean(1).flatten(1))


def _lengths(rows: Tensor) -> Tensor:
    """Lengths (N,) of rows (N, D), whose gradient at 0 is 0."""
    return torch.linalg.vector_norm(rows, dim=1)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """(a.b)^2 for all channels of a (N, C, P) and b (N, D, P): (N, C, D)."""
    return (a @ b.mT).square()


def _flow(first: Tensor, second: Tensor, variant: Literal["paper", "code"]) -> Tensor:
    """Mean products (N, C, D) of the channels of two layers of one network."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    pool = F.adaptive_max_pool2d if variant == "paper" else F.adaptive_avg_pool2d
    first, second = (maps if maps.shape[2:] == size else pool(maps, size) for maps in (first, second))
    return first.flatten(2) @ second.flatten(2).mT / (size[0] * size[1])


def _correlations(maps: Tensor) -> Tensor:
    """Products (N, C, C) of the channels of an image, each row of unit length."""
    flat = maps.flatten(2)
    return F.normalize(flat @ flat.mT, dim=2)
