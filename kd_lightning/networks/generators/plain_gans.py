"""Generators and discriminators without labels: DCGAN's, as E-GAN and CE-GAN use them, and fully connected ones.

Radford et al., ICLR 2016; the widths, the missing batch norm of the generator and the initialisation are those of
E-GAN's code for CIFAR-10. Images are in [0, 1]; inside, they are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal

from torch import Tensor, nn

from kd_lightning.core.sides import Size, sides
from kd_lightning.networks.generators.gan_blocks import from_pixels, grown_from, to_pixels

Norm = Literal["none", "batch"]


class DcganGenerator(nn.Module):
    """Latents (N, latent) to images (N, channels, H, W) by transposed convolutions of 4x4, and tanh.

    Args:
        latent: length of z.
        channels: of the image.
        size: height and width, or one number for both; the shorter is ``first`` times a power of 2, the longer any
            multiple of that power.
        ngf: channels of the last hidden map; each one before has twice as many.
        first: shorter side of the first map in pixels: 4, or 7 for images of 28.
        norm: between the layers, ``none`` or ``batch``.

    Raises:
        SizeError: another size.
    """

    def __init__(
        self,
        *,
        latent: int = 100,
        channels: int = 3,
        size: Size = 32,
        ngf: int = 128,
        first: int = 4,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        times, map_size = grown_from(first, size, of="DcganGenerator")
        widths = [ngf << i for i in reversed(range(times))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent, widths[0], map_size), *_norm(norm, widths[0]), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), *_norm(norm, after), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1), nn.Tanh())
        self.apply(_small_normal)

    def forward(self, z: Tensor) -> Tensor:
        """Images in [0, 1]."""
        return to_pixels(self.net(z[:, :, None, None]))


class DcganDiscriminator(nn.Module):
    """Images (N, channels, H, W) to logits (N,): convolutions of 4x4 and stride 2, then a linear layer.

    Args:
        channels: of the image.
        size: height and width, or one number for both; the shorter is ``last`` times a power of 2, the longer any
            multiple of that power.
        ndf: channels of the first map; each one after it has twice as many.
        last: shorter side of the last map in pixels.
        norm: of every map but the first, ``none`` or ``batch``.

    Raises:
        SizeError: another size.
    """

    def __init__(
        self, *, channels: int = 3, size: Size = 32, ndf: int = 128, last: int = 4, norm: Norm = "none"
    ) -> None:
        super().__init__()
        times, (tall, wide) = grown_from(last, size, of="DcganDiscriminator")
        widths = [ndf << i for i in range(times)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), *_norm(norm, after), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * tall * wide, 1))
        self.apply(_small_normal)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, high for real images."""
        return self.net(from_pixels(x)).squeeze(1)


class LinearGenerator(nn.Module):
    """Latents (N, latent) to images (N, channels, H, W) by linear layers with ReLU, and tanh.

    Args:
        latent: length of z.
        channels: of the image.
        size: height and width, or one number for both.
        widths: of the hidden layers.
    """

    def __init__(
        self, *, latent: int = 16, channels: int = 1, size: Size = 8, widths: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__()
        self.shape = (channels, *sides(size))
        layers: list[nn.Module] = []
        for before, after in pairwise([latent, *widths]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear([latent, *widths][-1], prod(self.shape)), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Images in [0, 1]."""
        return to_pixels(self.net(z).unflatten(1, self.shape))


class LinearCritic(nn.Module):
    """Images (N, channels, H, W) to logits (N,) by linear layers with leaky ReLU, without normalisation.

    Args:
        channels: of the image.
        size: height and width, or one number for both.
        widths: of the hidden layers.
    """

    def __init__(self, *, channels: int = 1, size: Size = 8, widths: Sequence[int] = (128, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        all_widths = [channels * prod(sides(size)), *widths]
        for before, after in pairwise(all_widths):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(all_widths[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, high for real images."""
        return self.net(from_pixels(x)).squeeze(1)


def _norm(norm: Norm, channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if norm == "batch" else []


def _small_normal(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)
