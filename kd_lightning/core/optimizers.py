"""Optimisers that PyTorch does not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Adam


def adam_on_convolutions(
    params: Iterable[nn.Parameter], *, lr: float = 1e-3, weight_decay: float = 0.0, fused: bool | None = None
) -> Adam:
    """Adam with weight decay, as an L2 penalty in the gradient, on the weights of convolutions only.

    Keras' ``kernel_regularizer=l2(c)`` on convolutions equals ``weight_decay`` 2c.

    Args:
        params: of a network; those with four dimensions count as weights of convolutions.
        lr: learning rate.
        weight_decay: of those weights.
        fused: see :class:`torch.optim.Adam`.
    """
    params = list(params)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.dim() == 4], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() != 4]},
    ]
    return Adam(groups, lr=lr, fused=fused)
