"""Generators and pair discriminators of Triple-GAN, Bad GAN and UGAN, for small images and for 32x32.

A generator maps latents (N,latent) and, if it has classes, labels (N,) to images (N,C,H,W) in [0,1]; a pair
discriminator maps images in [0,1] and labels to scores (N,), high for real pairs. The label enters every layer, as one
of K further values or maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.core.sides import Size, halved, sides
from kd_lightning.errors import SizeError
from kd_lightning.networks.weight_norm import GaussianNoise, weight_normed


class MlpImages(nn.Module):
    """Linear layers with batch norm and softplus; the last one has weight norm and ends in a sigmoid.

    Args:
        latent: length of z.
        channels: of the image.
        size: its height and width, or one number for both.
        hidden: widths of the hidden layers.
        num_classes: K; 0 for a generator without labels.
    """

    def __init__(
        self,
        *,
        latent: int = 100,
        channels: int = 1,
        size: Size = 28,
        hidden: Sequence[int] = (500, 500),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.latent, self.num_classes, self.shape = latent, num_classes, (channels, *sides(size))
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(a + num_classes, b, bias=False), nn.BatchNorm1d(b), nn.Softplus())
            for a, b in pairwise((latent, *hidden))
        )
        self.pixels = weight_normed(nn.Linear(hidden[-1] + num_classes, prod(self.shape)), gain=1.0)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Images (N,C,H,W) in [0,1]."""
        for layer in self.hidden:
            z = layer(_with_label(z, y, self.num_classes))
        return self.pixels(_with_label(z, y, self.num_classes)).sigmoid().view(-1, *self.shape)


class DeconvImages(nn.Module):
    """A 4x4 map and 5x5 transposed convolutions with batch norm and ReLU; the last has weight norm and ends in tanh.

    Args:
        latent: length of z.
        channels: of the image.
        size: its height and width, or one number for both, multiples of 2 ** len(hidden); the shorter one is 4 of them.
        hidden: channels of the maps; as many transposed convolutions double the sides.
        num_classes: K; 0 for a generator without labels.

    Raises:
        ValueError: the side does not suit the number of maps.
    """

    def __init__(
        self,
        *,
        latent: int = 100,
        channels: int = 3,
        size: Size = 32,
        hidden: Sequence[int] = (512, 256, 128),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if min(sides(size)) != 4 << len(hidden):
            raise SizeError(f"{len(hidden)} maps make images of side {4 << len(hidden)}, not size={size}")
        smallest = halved(size, len(hidden), of="DeconvImages")
        self.latent, self.num_classes = latent, num_classes
        first = hidden[0] * prod(smallest)
        linear = nn.Linear(latent + num_classes, first, bias=False)
        self.first = nn.Sequential(linear, nn.BatchNorm1d(first), nn.ReLU(), nn.Unflatten(1, (hidden[0], *smallest)))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(a + num_classes, b, 5, 2, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(hidden)
        )
        last = nn.ConvTranspose2d(hidden[-1] + num_classes, channels, 5, 2, 2, 1)
        self.pixels = weight_normed(last, gain=0.1)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Images (N,C,H,W) in [0,1]."""
        x = self.first(_with_label(z, y, self.num_classes))
        for up in self.ups:
            x = up(_with_label(x, y, self.num_classes))
        return (self.pixels(_with_label(x, y, self.num_classes)).tanh() + 1) / 2


class MlpPairs(nn.Module):
    """Noise, linear layers with weight norm and leaky ReLU on the pixels.

    Args:
        channels: of the image.
        size: its height and width, or one number for both.
        widths: of the hidden layers.
        noise: standard deviation of the noise on the image and on hidden layers; UGAN's authors have .2 for both.
        num_classes: K.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: Size = 28,
        widths: Sequence[int] = (1000, 500, 250, 250, 250),
        noise: tuple[float, float] = (0.3, 0.5),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers = zip((channels * prod(sides(size)), *widths), (*widths, 1), strict=True)
        self.layers = nn.ModuleList(weight_normed(nn.Linear(a + num_classes, b)) for a, b in layers)
        self.noises = nn.ModuleList(GaussianNoise(noise[1] if number else noise[0]) for number in range(len(widths)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores (N,)."""
        h, *hidden = x.flatten(1), *self.layers[:-1]
        for noise, layer in zip(self.noises, hidden, strict=True):
            h = F.leaky_relu(layer(_with_label(noise(h), y, self.num_classes)), 0.2)
        return self.layers[-1](_with_label(h, y, self.num_classes)).squeeze(1)


class ConvPairs(nn.Module):
    """3x3 convolutions with weight norm, leaky ReLU and dropout, every second of stride 2 but the last; then a mean.

    Args:
        channels: of the image.
        size: its height and width, or one number for both, multiples of 2 ** (len(widths) - 1).
        widths: channels of each two convolutions.
        noise: share of the image's values that are dropped, and of values after each two convolutions.
        num_classes: K.

    Raises:
        ValueError: the side cannot be halved so often.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        size: Size = 32,
        widths: Sequence[int] = (32, 64, 128),
        noise: tuple[float, float] = (0.2, 0.2),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        halved(size, len(widths) - 1, of="ConvPairs")
        self.num_classes = num_classes
        self.convs = nn.ModuleList()
        for number, (a, b) in enumerate(pairwise((channels, *widths))):
            stride = 2 if number + 1 < len(widths) else 1
            for inputs, step in ((a, 1), (b, stride)):
                self.convs.append(weight_normed(nn.Conv2d(inputs + num_classes, b, 3, step, 1)))
        self.drop_pixels, self.drop = nn.Dropout(noise[0]), nn.Dropout(noise[1])
        self.last = weight_normed(nn.Linear(widths[-1] + num_classes, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores (N,)."""
        h = self.drop_pixels(2 * x - 1)
        for number, conv in enumerate(self.convs):
            h = F.leaky_relu(conv(_with_label(h, y, self.num_classes)), 0.2)
            h = self.drop(h) if number % 2 else h
        return self.last(_with_label(h.mean((2, 3)), y, self.num_classes)).squeeze(1)


def _with_label(x: Tensor, y: Tensor | None, num_classes: int) -> Tensor:
    """Values (N,D) or maps (N,C,H,W) with K more of them that say the label; ``x`` itself without classes."""
    if y is None or not num_classes:
        return x
    onehot = F.one_hot(y, num_classes).to(x)
    if x.dim() == 4:
        onehot = onehot[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, onehot], 1)
