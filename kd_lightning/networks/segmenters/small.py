"""A small fully convolutional encoder and decoder, for scenes of about 100 pixels on a processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class SmallSegmenter(nn.Module):
    """Images (N,in_channels,H,W) -> logits (N,num_classes,H,W), height and width free.

    The encoder halves the sides twice (strided convolutions), then sees further by dilated ones; the mean of its last
    map over all positions is added to every one, as context. The decoder is a 1x1 convolution at a quarter of the
    sides, joined with the features at half of them, and bilinear interpolation.

    Args:
        num_classes: of the logits.
        in_channels: of the images.
        widths: channels of the five convolutions, at 1/1, 1/2, 1/4, 1/4 (dilation 2) and 1/4 (dilation 4).
    """

    needs = frozenset({"task.segmentation"})

    def __init__(
        self, *, num_classes: int = 11, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64, 64, 64)
    ) -> None:
        super().__init__()
        if len(widths) != 5:
            raise ValueError(f"widths: {len(widths)} numbers, expected one for each of the five convolutions")
        one, two, three, four, five = widths
        self.at_full = _convolution(in_channels, one)
        self.at_half = _convolution(one, two, stride=2)
        self.at_quarter = nn.Sequential(
            _convolution(two, three, stride=2),
            _convolution(three, four, dilation=2),
            _convolution(four, five, dilation=4),
        )
        self.context = nn.Linear(five, five)
        self.head = nn.Conv2d(five, num_classes, 1)
        self.fine = nn.Conv2d(two, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes,H,W) of images (N,in_channels,H,W)."""
        half = self.at_half(self.at_full(x))
        deep = self.at_quarter(half)
        deep = deep + self.context(deep.mean((2, 3)))[:, :, None, None]
        logits = _as_large_as(self.head(deep), half) + self.fine(half)
        return _as_large_as(logits, x)


def _convolution(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _as_large_as(x: Tensor, other: Tensor) -> Tensor:
    return F.interpolate(x, size=other.shape[2:], mode="bilinear", align_corners=False)
