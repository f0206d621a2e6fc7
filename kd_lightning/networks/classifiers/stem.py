"""How a network for images of 32x32 takes larger ones: what its first layers leave of height and width.

``full`` is the network's own first convolution. ``half`` is a 4x4 convolution of stride 2 in its place, ``quarter`` the
same and a 3x3 max pooling of stride 2 behind it: what cGAN-KD's authors (Ding et al. 2023) use at 64 and at 128 pixels.
"""

from typing import Literal

from torch import nn

Stem = Literal["full", "half", "quarter"]


def stem_conv(in_channels: int, channels: int, stem: Stem, *, kernel: int = 3) -> nn.Conv2d:
    """The first convolution, without bias; ``kernel`` is that of ``full``.

    Raises:
        ValueError: an unknown stem.
    """
    if stem == "full":
        return nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    if stem not in ("half", "quarter"):
        raise ValueError(f"unknown stem {stem!r}: take full, half or quarter")
    return nn.Conv2d(in_channels, channels, 4, stride=2, padding=1, bias=False)


def stem_pool(stem: Stem) -> nn.Module:
    """What follows the first convolution and its BatchNorm and ReLU."""
    return nn.MaxPool2d(3, stride=2, padding=1) if stem == "quarter" else nn.Identity()
