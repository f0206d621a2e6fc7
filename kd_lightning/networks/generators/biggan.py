"""BigGAN for small images (Brock, Donahue and Simonyan, ICLR 2019, arXiv 1809.11096), as cGAN-KD trains it.

Residual generator under spectral norm with an own embedding of the classes in every BatchNorm, and the projection
discriminator. The settings' defaults are those of cGAN-KD's code for 32x32: 4,580,867 and 4,230,401 parameters with
100 classes.

Deviations (paper / authors' code / here):
    * Latents: a part of z and a shared embedding for every block / z for the first layer alone, an own embedding for
      every BatchNorm / the code.
    * Spectral norm: - / power iteration in eval mode, too / in training mode alone.
    * skip: doubled, then convolved / likewise / convolved, then doubled, which is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks.generators.gan_blocks import (
    ConditionalBatchNorm,
    DownBlock,
    Layers,
    UpBlock,
    doublings,
    from_pixels,
    to_pixels,
    verdict,
    widths_of,
)


class BigGanGenerator(nn.Module):
    """Latents (N, latent) and classes (N,) int64 -> images (N, channels, size, size) in [0, 1].

    Args:
        num_classes: of the labels.
        latent: length of z.
        channels: of the image.
        size: height and width, 4 times a power of 2.
        widths: channels of the maps of 4x4, 8x8 ... ``size``; one number for all alike.
        init: of all weights: ``normal`` of deviation 0.02, or ``orthogonal``, by which narrow networks learn sooner.

    Raises:
        ValueError: a size that is never reached, or a wrong number of widths.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        latent: int = 128,
        channels: int = 3,
        size: int = 32,
        widths: int | Sequence[int] = 256,
        init: Literal["normal", "orthogonal"] = "normal",
    ) -> None:
        super().__init__()
        self.latent = latent
        maps = widths_of(widths, doublings(size, 4, of="BigGAN's generator") + 1, of="BigGAN's generator")
        layers = Layers(init)

        def norm(width: int) -> nn.Module:
            return ConditionalBatchNorm(width, lambda outputs: layers.plain(nn.Embedding(num_classes, outputs)))

        self.project = layers.linear(latent, maps[0] * 16)
        up = partial(UpBlock, layers=layers, norm=norm)
        self.blocks = nn.ModuleList(up(a, b) for a, b in pairwise(maps))
        self.norm = nn.BatchNorm2d(maps[-1])
        self.out = layers.conv(maps[-1], channels)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images of latents z, standard normal, and labels y."""
        h = self.project(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            h = block(h, y)
        return to_pixels(torch.tanh(self.out(F.relu(self.norm(h)))))


class BigGanDiscriminator(nn.Module):
    """Images (N, channels, size, size) in [0, 1] and classes (N,) int64 -> verdicts (N,), high for real ones.

    Args:
        num_classes: of the labels.
        channels: of the image.
        size: height and width, ``final`` times a power of 2.
        widths: channels after each block: one for every halving, then two; one number for all alike.
        final: height and width of the last maps.
        init: see the generator.

    Raises:
        ValueError: a size that is never reached, or a wrong number of widths.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int = 3,
        size: int = 32,
        widths: int | Sequence[int] = 256,
        final: int = 8,
        init: Literal["normal", "orthogonal"] = "normal",
    ) -> None:
        super().__init__()
        halvings = doublings(size, final, of="BigGAN's discriminator")
        maps = widths_of(widths, halvings + 2, of="BigGAN's discriminator")
        layers = Layers(init)
        self.blocks = nn.Sequential(
            *(
                DownBlock(a, b, layers=layers, halve=i < halvings, first=i == 0)
                for i, (a, b) in enumerate(zip([channels, *maps], maps, strict=False))
            )
        )
        self.linear = layers.linear(maps[-1], 1)
        self.embed = layers.embedding(num_classes, maps[-1])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Linear in the summed map h, with a part for each class: w h + <e(y), h>."""
        h = F.relu(self.blocks(from_pixels(x))).sum((2, 3))
        return verdict(h, self.linear, self.embed(y))
