"""Which images of a made pool stay: those of the smallest errors, and equally many of each label."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kd_lightning.errors import DataError


def smallest(errors: Tensor, labels: Tensor, share: float, *, each: bool) -> Tensor:
    """Mask (N,) of the errors below their ``share``-quantile, over all or per label.

    As in the paper strictly below, so that ``share=1`` drops the largest; if all errors are equal, all stay.
    """
    stays = torch.zeros(len(errors), dtype=torch.bool)
    for rows in [labels == label for label in labels.unique()] if each else [torch.ones_like(stays)]:
        own = errors[rows].double().numpy()
        cut = np.quantile(own, share)
        inside = own < cut
        stays[rows] = torch.from_numpy(inside if inside.any() else own <= cut)
    return stays


def most_below(n: int, share: float) -> int:
    """How many of ``n`` errors :func:`smallest` keeps, if all differ."""
    return math.ceil(share * (n - 1)) or n


def choice(groups: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Positions (n,) of random rows, equally many of each group; the last group takes the remainder.

    Args:
        groups: (N,) integers.
        n: number of rows.
        rng: on the CPU.

    Raises:
        DataError: a group has too few rows.
    """
    names = groups.unique()
    share, chosen = n // max(1, len(names)), []
    for i, name in enumerate(names):
        rows = torch.nonzero(groups == name).squeeze(1)
        wanted = share if i < len(names) - 1 else n - share * (len(names) - 1)
        if len(rows) < wanted:
            raise DataError(
                f"source.images={n} takes {wanted} of each label, but of one only {len(rows)} are left: raise "
                "source.per_label or source.keep, or ask for fewer"
            )
        chosen.append(rows[torch.randperm(len(rows), generator=rng)[:wanted]])
    return torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.long)
