"""The classifier that CGN trains on counterfactual digits (Sauer and Geiger 2021, the network of Kim et al. 2019)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


class DigitsCnn(nn.Module):
    """Five layers for images of 32x32: (N,in_channels,32,32) -> (N,num_classes); 67,760 parameters for RGB.

    `pool="reference"` averages the top left 7x7 of the last map, as the authors' code does: it was written for 28x28
    images, whose map is 7x7, and ignores the last row and column of the 8x8 map of 32x32 images. "global" averages the
    whole map. The output is logits; the authors' is log-probabilities.
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 3, pool: Literal["reference", "global"] = "reference"
    ) -> None:
        super().__init__()
        if pool not in ("reference", "global"):
            raise ValueError(f"DigitsCnn takes pool=reference or global, got {pool}")
        self.pool = pool
        self.features = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            *_conv(in_channels, 32, kernel=5),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_conv(32, 32),
            *_conv(32, 64, stride=2),
            *_conv(64, 64),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W); ValueError for sides of fewer than 25 pixels."""
        y = self.features(x)
        if self.pool == "reference":
            if min(y.shape[-2:]) < 7:
                raise ValueError(
                    f"DigitsCnn takes images of 25x25 or more, got {x.shape[-2]}x{x.shape[-1]}: set student.pool=global"
                )
            y = y[..., :7, :7]
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def _conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2), nn.ReLU()]
