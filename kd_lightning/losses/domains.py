"""Losses that make the features of two domains alike: maximum mean discrepancy, and a reversed gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KERNELS, CENTRE = 5, 2
"""Number of Gaussian kernels, each twice as wide as the one before, and which of them has the mean distance's width."""


def mmd(source: Tensor, target: Tensor) -> Tensor:
    """MMD^2 of two sets of features: the sum over five kernels k of mean k(s,s') + mean k(t,t') - 2 mean k(s,t).

    Long et al., *Learning Transferable Features with Deep Adaptation Networks* (ICML 2015), as KD_UDA's code has it:
    k_i(x,y) = exp(-|x-y|^2 / (w 2^i)), i = 0..4, w = a quarter of the mean squared distance between different rows of
    both sets together, of which no gradient is taken. Means include each row with itself (the biased estimate), so
    that two samples of one law give more than 0; only equal sets give 0. Between 0 and 10.

    Args:
        source: features (N,D).
        target: features (M,D).
    """
    if source.dim() != 2 or source.shape[1:] != target.shape[1:]:
        raise ValueError(f"features must be (N,D) and (M,D), got {tuple(source.shape)} and {tuple(target.shape)}")
    n, total = len(source), torch.cat([source, target]).float()
    distance = torch.cdist(total, total, compute_mode="donot_use_mm_for_euclid_dist").square()
    width = distance.detach().sum() / (len(total) ** 2 - len(total)) / 2**CENTRE
    width = width.clamp_min(torch.finfo(width.dtype).tiny)  # equal rows
    kernel = torch.stack([torch.exp(-distance / (width * 2**i)) for i in range(KERNELS)]).sum(0)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def reverse_gradient(x: Tensor, delta: float) -> Tensor:
    """``x`` itself, whose gradient comes back as -delta times what it was (Ganin and Lempitsky, ICML 2015)."""
    return _Reversed.apply(x, delta)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: float) -> Tensor:
        ctx.delta = delta
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.delta * gradient, None


def domain_cross_entropy(source: Tensor, target: Tensor) -> Tensor:
    """Half the binary cross-entropy of each domain: the source is 1, the target 0.

    Args:
        source: a discriminator's logits of labelled images, of any shape.
        target: those of images of the other domain.
    """
    return (F.softplus(-source.float()).mean() + F.softplus(target.float()).mean()) / 2


def ramp(progress: float) -> float:
    """2 / (1 + exp(-10 p)) - 1, from 0 at p = 0 to nearly 1 at p = 1: the weight of the domains' term (DANN)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1
