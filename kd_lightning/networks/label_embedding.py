"""Improved label input of CcGAN (Ding et al., ICLR 2021): an embedding of numbers learned from images.

Two networks. T1 predicts an image's number through a non-negative hidden vector h; T2 learns to map a number to a
vector from which T1's last layer, now frozen, predicts the number. Only T2 is used afterwards.

Deviations (paper / authors' code / here):
    * Last bias of T1: - / PyTorch's, whose ReLU may be dead on every image from the start / 0.5, mid-range.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet

from kd_lightning.core.sides import Size, sides
from kd_lightning.networks.classifiers.stem import Stem, stem_conv, stem_pool


class ResNetTrunk(nn.Sequential):
    """The convolutions of ResNet-34 for small images: (N, in_channels, H, W) -> (N, 512).

    A 3x3 stem of stride 1, then four groups, the first of stride ``first``, and the mean over positions.

    Args:
        in_channels: of the image.
        first: stride of the first group: 2 in CcGAN's T1, 1 in cGAN-KD's extractor of features.
        stem: `full` for 32x32 and 64x64; see `stem.py` for larger images.
    """

    features = 512

    def __init__(self, *, in_channels: int = 3, first: int = 2, stem: Stem = "full") -> None:
        net = TorchvisionResNet(BasicBlock, [3, 4, 6, 3])
        net.inplanes = 64
        net.layer1 = net._make_layer(BasicBlock, 64, 3, stride=first)
        net.conv1 = stem_conv(in_channels, 64, stem)
        pool = [stem_pool(stem)] if stem == "quarter" else []
        groups = (net.layer1, net.layer2, net.layer3, net.layer4)
        super().__init__(net.conv1, net.bn1, net.relu, *pool, *groups, net.avgpool, nn.Flatten())


def feature_trunk(*, in_channels: int = 3, stem: Stem = "full") -> ResNetTrunk:
    """The trunk of cGAN-KD's feature extractor: its first group keeps height and width."""
    return ResNetTrunk(in_channels=in_channels, first=1, stem=stem)


class ConvTrunk(nn.Sequential):
    """3x3 convolutions of stride 2 with BatchNorm and ReLU, flattened; for digits.

    (N, in_channels, H, W) -> (N, features), with ``features`` = widths[-1] * H * W / 4^len(widths).

    Args:
        in_channels: of the image.
        size: height and width, or one number for both.
        widths: of the convolutions.
    """

    def __init__(self, *, in_channels: int = 1, size: Size = 16, widths: Sequence[int] = (32, 64)) -> None:
        tall, wide = sides(size)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((in_channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            tall, wide = -(-tall // 2), -(-wide // 2)
        super().__init__(*layers, nn.Flatten())
        self.features = widths[-1] * tall * wide


class ImageToLabel(nn.Module):
    """T1: images (N, C, H, W), normalised -> the place of their number in its range, (N, 1), not negative.

    Args:
        trunk: images to vectors of ``trunk.features`` values.
        embed: length of the hidden vector h.
        hidden: length of the vector before it.
    """

    def __init__(self, trunk: ResNetTrunk | ConvTrunk, *, embed: int = 128, hidden: int = 512) -> None:
        super().__init__()
        self.trunk = trunk
        self.x2h = nn.Sequential(
            *(nn.Linear(trunk.features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, embed), nn.BatchNorm1d(embed), nn.ReLU()),
        )
        self.h2y = nn.Sequential(nn.Linear(embed, 1), nn.ReLU())
        nn.init.constant_(self.h2y[0].bias, 0.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The place that ``h2y`` predicts from h."""
        place: Tensor = self.h2y(self.x2h(self.trunk(x)))
        return place


class LabelToHidden(nn.Sequential):
    """T2: places of numbers in their range, (N,), -> vectors (N, embed), not negative.

    Args:
        embed: length of the vectors, a multiple of 8 and best at least 64: the norms have eight groups, and a group of
            two values only keeps which one is greater.
        depth: hidden layers.
    """

    def __init__(self, *, embed: int = 128, depth: int = 4) -> None:
        layers: list[nn.Module] = []
        for inputs in (1, *[embed] * (depth - 1)):
            layers += [nn.Linear(inputs, embed), nn.GroupNorm(8, embed), nn.ReLU()]
        super().__init__(*layers, nn.Linear(embed, embed), nn.ReLU())

    def forward(self, y: Tensor) -> Tensor:
        """Vectors (N, embed) of places (N,)."""
        return super().forward(y.view(-1, 1).to(torch.float32) + 1e-8)
