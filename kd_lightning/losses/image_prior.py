"""Priors on generated images that need no real ones."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def one_hot(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (N,K) against their own argmax: L_oh of DAFL (Chen et al., ICCV 2019)."""
    return F.cross_entropy(logits.float(), logits.detach().argmax(1))


def information_entropy(logits: Tensor, *, log: Literal["e", "10"] = "e") -> Tensor:
    """Minus the entropy of p, the batch mean of softmax(logits), for logits (N,K): DAFL's L_ie.

    The minimum, -log K, means that the batch shows every class equally often. DAFL writes the natural
    logarithm and its code computes `log="10"`, a factor of 2.302585 that its published weight contains.
    """
    if log not in ("e", "10"):
        raise ValueError(f"unknown logarithm {log!r}: take e or 10")
    # In log space: p log p of an underflowed class is 0 with a finite gradient, where p * p.log() is NaN.
    log_p = F.log_softmax(logits.float(), dim=1).logsumexp(0) - math.log(len(logits))
    negative_entropy = (log_p.exp() * log_p).sum()
    return negative_entropy if log == "e" else negative_entropy / math.log(10)


def activation(features: Tensor, *, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Minus the mean absolute feature: DAFL's L_a, on penultimate features (N,D).

    Args:
        features: (N,D); maps are flattened.
        reduction: DAFL's code takes the "mean" over features, its paper the "sum" (the L1 norm of each row);
            both average over the batch.
    """
    size = features.float().abs().flatten(1)
    if reduction == "mean":
        return -size.mean()
    if reduction == "sum":
        return -size.sum(1).mean()
    raise ValueError(f"unknown reduction {reduction!r}: take mean or sum")


def total_variation(x: Tensor, *, norm: Literal["l2", "l1"] = "l2") -> Tensor:
    """Total variation of x (N,C,H,W), differences of neighbours in four directions: DeepInversion's R_TV.

    "l2" adds four Frobenius norms over the whole batch, as the authors' code does, so it grows with the square
    root of N; "l1" adds four means of absolute differences.
    """
    x = x.float()
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    if norm == "l2":
        return torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()
    if norm == "l1":
        return torch.stack([d.abs().mean() for d in differences]).sum()
    raise ValueError(f"unknown norm {norm!r}: take l2 or l1")


def l2_norm(x: Tensor) -> Tensor:
    """Frobenius norm of the whole batch x: DeepInversion's R_l2 (CIFAR code)."""
    return torch.linalg.vector_norm(x.float())  # gradient 0 at 0, where the root of a sum has NaN
