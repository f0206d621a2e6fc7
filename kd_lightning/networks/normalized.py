"""A classifier that carries its own normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_lightning.core.sides import Size
from kd_lightning.networks.outputs import as_logits, one_tensor, resized


class Normalized(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> (x - mean) / std -> ``net`` -> one tensor of logits.

    The statistics are part of the state dict: a network is valid only with those it was trained with.

    Args:
        net: any module on normalised images.
        mean: per channel, in data units.
        std: per channel, in data units.
        class_order: ``class_order[i]`` is the index of the output of ``net`` for class i; None keeps the order.
        outputs: what ``net`` answers with, see :func:`~kd_lightning.networks.outputs.as_logits`; its output may be
            any that :func:`~kd_lightning.networks.outputs.one_tensor` takes.
        size: height and width of the images that ``net`` takes, or one number for both; others are resized. None
            leaves them.
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
        outputs: str = "logits",
        size: Size | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1))
        self.class_order = None if class_order is None else list(class_order)
        self.outputs, self.size = outputs, size

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        output = as_logits(one_tensor(self.net(self.standardise(resized(x, self.size)))), self.outputs)
        return output if self.class_order is None else output[:, self.class_order]

    def standardise(self, x: Tensor) -> Tensor:
        """(x - mean) / std, the input of ``net``: papers take losses on pixels in this space."""
        return (x - self.mean) / self.std
