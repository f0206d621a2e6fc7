"""ShuffleNet V1 (Zhang et al., CVPR 2018) and V2 (Ma et al., ECCV 2018) of the CIFAR-100 distillation tables."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks.classifiers.stem import Stem, stem_conv, stem_pool

_FIRST = 24
"""Channels after the stem."""


class ShuffleNetV1(nn.Module):
    """Grouped 1x1 convolutions with shuffled channels: (N,in_channels,H,W) -> (N,num_classes), 960 features.

    Three groups of convolutions; the outputs of `layer1`, `layer2`, `layer3` have 240, 480 and 960 channels.

    Args:
        num_classes: logits.
        in_channels: channels of the image.
        stem: for images larger than 32x32, see `stem.py`; `full` is a 1x1 convolution here.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3, stem: Stem = "full") -> None:
        super().__init__()
        self.stem = _stem(in_channels, stem)
        self.layer1 = _grouped(_FIRST, 240, 4)
        self.layer2 = _grouped(240, 480, 8)
        self.layer3 = _grouped(480, 960, 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(960, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        logits: Tensor = self.head(self.pool(self.layer3(self.layer2(self.layer1(self.stem(x))))).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`; its last activations are no modules."""
        return {"stem": ["stem"], "blocks": ["layer1", "layer2", "layer3"], "before": ["layer1", "layer2", "layer3"]}


class ShuffleNetV2(nn.Module):
    """Half of the channels skips each block: (N,in_channels,H,W) -> (N,num_classes), 1,024 features.

    The outputs of `layer1`, `layer2`, `layer3` have 116, 232 and 464 channels.

    Args:
        num_classes: logits.
        in_channels: channels of the image.
        stem: for images larger than 32x32, see `stem.py`; `full` is a 1x1 convolution here.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3, stem: Stem = "full") -> None:
        super().__init__()
        self.stem = _stem(in_channels, stem)
        self.layer1 = _split(_FIRST, 116, 3)
        self.layer2 = _split(116, 232, 7)
        self.layer3 = _split(232, 464, 3)
        self.conv5 = nn.Sequential(*_conv(464, 1024, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes) of images (N,in_channels,H,W)."""
        x = self.conv5(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits

    def places(self) -> dict[str, list[str]]:
        """Taps by name, see :mod:`~kd_lightning.networks.places`; its last activations are no modules."""
        return {"stem": ["stem"], "blocks": ["layer1", "layer2", "layer3"], "before": ["layer1", "layer2", "layer3"]}


class _Grouped(nn.Module):
    """V1's block. At stride 2 it appends the averaged input, `inputs` of its `outputs` channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        inside, first = made // 4, 1 if inputs == _FIRST else groups
        self.reduce = nn.Sequential(*_conv(inputs, inside, 1, groups=first), nn.ReLU())
        self.first = first
        self.expand = nn.Sequential(
            *_conv(inside, inside, 3, stride=stride, groups=inside), nn.ReLU(), *_conv(inside, made, 1, groups=groups)
        )
        self.average = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(_shuffled(self.reduce(x), self.first))
        return F.relu(x + y if self.average is None else torch.cat([y, self.average(x)], 1))


class _Split(nn.Module):
    """V2's block of stride 1: convolve one half of the channels, then mix the halves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.work = nn.Sequential(
            *_conv(half, half, 1), nn.ReLU(), *_conv(half, half, 3, groups=half), *_conv(half, half, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, 1)
        return _shuffled(torch.cat([kept, self.work(worked)], 1), 2)


class _Halving(nn.Module):
    """V2's block of stride 2: both branches take all channels, and each gives half of the new ones."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(
            *_conv(inputs, inputs, 3, stride=2, groups=inputs), *_conv(inputs, half, 1), nn.ReLU()
        )
        self.right = nn.Sequential(
            *_conv(inputs, half, 1),
            nn.ReLU(),
            *_conv(half, half, 3, stride=2, groups=half),
            *_conv(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return _shuffled(torch.cat([self.left(x), self.right(x)], 1), 2)


def _grouped(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Grouped(inputs, outputs, 2), *(_Grouped(outputs, outputs, 1) for _ in range(blocks - 1)))


def _split(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Halving(inputs, outputs), *(_Split(outputs) for _ in range(blocks)))


def _stem(in_channels: int, stem: Stem) -> nn.Sequential:
    return nn.Sequential(
        stem_conv(in_channels, _FIRST, stem, kernel=1), nn.BatchNorm2d(_FIRST), nn.ReLU(), stem_pool(stem)
    )


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels (g, C/g) in the order (C/g, g), so that the next grouped convolution mixes all groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
