"""A classifier that carries its own normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> (x - mean) / std -> ``net``.

    The statistics are part of the state dict: a network is valid only with those it was trained with.

    Args:
        net: any module on normalised images.
        mean: per channel, in data units.
        std: per channel, in data units.
        class_order: ``class_order[i]`` is the index of the output of ``net`` for class i; None keeps the order.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        class_order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1))
        self.class_order = None if class_order is None else list(class_order)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        output = self.net(self.standardise(x))
        return output if self.class_order is None else output[:, self.class_order]

    def standardise(self, x: Tensor) -> Tensor:
        """(x - mean) / std, the input of ``net``: papers take losses on pixels in this space."""
        return (x - self.mean) / self.std
