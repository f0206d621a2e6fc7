"""A small encoder and decoder for segmentation, where a step of a few small images takes some milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EncoderDecoder(nn.Module):
    """Halves the map between widths, then doubles it again and joins each map of the way down; as U-Net (2015).

    (N, in_channels, H, W) -> (N, num_classes, H, W); any H, W: maps are resized to those that they join.

    Args:
        num_classes: logits of a pixel.
        in_channels: channels of the image.
        widths: channels of the maps, from the image's size downwards.
        dropout: share of the deepest map's channels that are left out while training.

    Raises:
        ValueError: no width.
    """

    needs = frozenset({"task.segmentation"})

    def __init__(
        self, *, num_classes: int, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("EncoderDecoder needs at least one width")
        pairs = list(zip((in_channels, *widths), widths, strict=False))
        self.down = nn.ModuleList(_conv(a, b, stride=2 if i else 1) for i, (a, b) in enumerate(pairs))
        self.up = nn.ModuleList(_conv(a + b, a) for a, b in reversed(pairs[1:]))
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes, H, W) of images (N, in_channels, H, W)."""
        maps = []
        for conv in self.down:
            x = conv(x)
            maps.append(x)
        x = self.dropout(maps.pop())
        for conv in self.up:
            beside = maps.pop()
            x = conv(torch.cat((F.interpolate(x, size=beside.shape[-2:], mode="nearest"), beside), 1))
        logits: Tensor = self.head(x)
        return logits


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
