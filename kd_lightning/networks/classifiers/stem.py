"""Stems: first layers that let a network for images of 32x32 take larger ones.

``full`` is the network's own first convolution. ``half`` replaces it by a 4x4 convolution of stride 2, ``quarter`` adds
a 3x3 max pooling of stride 2: cGAN-KD's authors (Ding et al. 2023) use these at 64 and at 128 pixels. ``imagenet`` is a
7x7 convolution of stride 2 and the same pooling, torchvision's at 224 pixels.
"""

from typing import Literal

from torch import nn

Stem = Literal["full", "half", "quarter", "imagenet"]


def stem_conv(in_channels: int, channels: int, stem: Stem, *, kernel: int = 3) -> nn.Conv2d:
    """The first convolution, without bias; ``kernel`` is its size where ``stem`` is ``full``.

    Raises:
        ValueError: an unknown stem.
    """
    if stem == "full":
        return nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    if stem == "imagenet":
        return nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    if stem not in ("half", "quarter"):
        raise ValueError(f"unknown stem {stem!r}: take full, half, quarter or imagenet")
    return nn.Conv2d(in_channels, channels, 4, stride=2, padding=1, bias=False)


def stem_pool(stem: Stem) -> nn.Module:
    """The layer after the first convolution, BatchNorm and ReLU: pooling for ``quarter``, ``imagenet``, else none."""
    return nn.MaxPool2d(3, stride=2, padding=1) if stem in ("quarter", "imagenet") else nn.Identity()
