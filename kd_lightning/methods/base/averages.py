"""Moving averages of networks."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def average(kept: nn.Module, live: nn.Module, decay: float) -> None:
    """Update weights and batch-norm statistics: kept = decay kept + (1 - decay) live; the rest is copied.

    The vectors of spectral norm are copied, too: they have length 1, which an average does not.
    """
    new = live.state_dict()
    for name, old in kept.state_dict().items():
        if old.is_floating_point() and not name.endswith(("._u", "._v")):
            old.lerp_(new[name], 1 - decay)
        else:
            old.copy_(new[name])
