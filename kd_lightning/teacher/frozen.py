"""A teacher inside a LightningModule that nothing there can change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kd_lightning.ranks import world


class FrozenTeacher(nn.Module):
    """Follows its owner to a device or dtype, but owns no parameter, buffer or checkpoint key.

    It stays in eval mode whatever its owner does, gradients pass through it to the images and never
    reach its weights.
    """

    access = "white"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._held = [net.eval().requires_grad_(False)]
        self.asked = 0

    @property
    def net(self) -> nn.Module:
        """The network itself, for methods that read its features or batch-norm statistics."""
        return self._held[0]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenTeacher:
        self.net._apply(fn)
        super()._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Answer images (N, C, H, W) in [0, 1] with logits (N, K)."""
        self.asked += len(x) * world()
        return self.net(x)
