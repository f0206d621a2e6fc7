"""Optimisers that PyTorch has not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Adam


def adam_on_convolutions(
    params: Iterable[nn.Parameter], *, lr: float = 1e-3, weight_decay: float = 0.0, fused: bool | None = None
) -> Adam:
    """Adam whose decay, an L2 penalty in the gradient, is of convolutions' weights only.

    Keras' ``kernel_regularizer=l2(c)`` on convolutions is this with ``weight_decay`` 2c.

    Args:
        params: of a network; weights of four dimensions are taken to be convolutions'.
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
