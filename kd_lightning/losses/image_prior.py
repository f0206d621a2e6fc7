"""Priors on generated images that need no real ones."""

import math
from typing import Literal

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
