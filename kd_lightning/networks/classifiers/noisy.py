"""Bad GAN's classifiers (Dai et al., NeurIPS 2017): weight norm, and Gaussian noise or dropout between the layers.

Neither has a statistic of a batch: a classifier that tells real images from generated ones sees them in batches of
their own, whose difference batch norm would hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from kd_lightning.core.sides import Size, sides
from kd_lightning.networks.weight_norm import GaussianNoise, weight_normed


class NoisyMlp(nn.Module):
    """Linear layers on noisy pixels: (N,in_channels,H,W) -> (N,num_classes). The paper's for MNIST by default.

    Args:
        num_classes: K.
        in_channels: of the image.
        size: its height and width, or one number for both.
        widths: of the hidden layers, each followed by ReLU.
        noise: standard deviation of the noise on the image, in the units of the network's input, and on hidden layers.
        weight_norm: whether the layers have weight norm.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 1,
        size: Size = 28,
        widths: Sequence[int] = (1000, 500, 250, 250, 250),
        noise: tuple[float, float] = (0.3, 0.5),
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        on_image, hidden = noise
        layers: list[nn.Module] = [nn.Flatten()]
        for number, (a, b) in enumerate(zip((in_channels * prod(sides(size)), *widths), widths, strict=False)):
            layers += [GaussianNoise(hidden if number else on_image), weight_normed(nn.Linear(a, b), on=weight_norm)]
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        last = weight_normed(nn.Linear(widths[-1], num_classes), gain=1.0, on=weight_norm)
        self.head = nn.Sequential(GaussianNoise(hidden), last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class NoisyConv(nn.Module):
    """Nine convolutions for 32x32: (N,in_channels,32,32) -> (N,num_classes). The paper's for SVHN by default.

    Any side of at least 12.

    Args:
        num_classes: K.
        in_channels: of the image.
        widths: channels of the first three convolutions and of the others; (96, 192) for CIFAR-10.
        noise: standard deviation of the noise on the image, in the units of the network's input.
        dropout: share of the image's channels that are dropped, and of hidden values; the paper drops whole hidden
            channels for SVHN.
        channelwise: whether hidden dropout takes whole channels.
        weight_norm: whether the layers have weight norm.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: tuple[int, int] = (64, 128),
        noise: float = 0.05,
        dropout: tuple[float, float] = (0.15, 0.5),
        channelwise: bool = True,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        narrow, wide = widths

        def conv(a: int, b: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
            return [weight_normed(nn.Conv2d(a, b, kernel, stride, padding), on=weight_norm), nn.LeakyReLU(0.2)]

        drop = nn.Dropout2d if channelwise else nn.Dropout
        self.features = nn.Sequential(
            *(GaussianNoise(noise), nn.Dropout2d(dropout[0])),
            *(*conv(in_channels, narrow), *conv(narrow, narrow), *conv(narrow, narrow, stride=2), drop(dropout[1])),
            *(*conv(narrow, wide), *conv(wide, wide), *conv(wide, wide, stride=2), drop(dropout[1])),
            *(*conv(wide, wide, padding=0), *conv(wide, wide, 1, padding=0), *conv(wide, wide, 1, padding=0)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = weight_normed(nn.Linear(wide, num_classes), gain=1.0, on=weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,num_classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits
