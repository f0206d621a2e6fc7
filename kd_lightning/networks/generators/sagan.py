"""SAGAN conditioned on a number: the networks of CcGAN (Ding et al., ICLR 2021) with improved label input.

A network trained beforehand maps a label to a vector (see ``label_embedding``); that vector sets gain and bias of every
BatchNorm of the generator, and is projected on the discriminator's last map. With the defaults, for images of 64x64,
they have 15,070,052 and 21,660,466 parameters without the embedding.

Deviations (paper / authors' code / here):
    * Embedding: separate / separate / inside the networks, frozen, so that a generator needs one weights file only and
      is a function of latent and label like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks.generators.gan_blocks import (
    ConditionalBatchNorm,
    DownBlock,
    Layers,
    SelfAttention,
    UpBlock,
    doublings,
    from_pixels,
    to_pixels,
    verdict,
    widths_of,
)


class SaganGenerator(nn.Module):
    """Latents (N, latent) and labels (N,) float, in [0, 1] or near -> images (N, channels, size, size) in [0, 1].

    Args:
        embedding: labels (N,) to vectors (N, embed).
        embed: length of these vectors.
        latent: length of z.
        channels: of the image.
        size: height and width, 4 times a power of 2.
        widths: channels of the maps of 4x4, 8x8 ... ``size``, or one number for all.
        attention: height of the map that attends to itself; None for no attention.
        momentum: of the conditional BatchNorms' running statistics.
        momentum_out: of the last BatchNorm's.

    Raises:
        ValueError: ``size`` is not 4 times a power of 2, or a wrong number of widths.
    """

    def __init__(
        self,
        *,
        embedding: nn.Module,
        embed: int = 128,
        latent: int = 256,
        channels: int = 3,
        size: int = 64,
        widths: int | Sequence[int] = (1024, 512, 256, 128, 64),
        attention: int | None = 32,
        momentum: float = 0.001,
        momentum_out: float = 0.0001,
    ) -> None:
        super().__init__()
        self.embedding, self.latent = embedding, latent
        maps = widths_of(widths, doublings(size, 4, of="SAGAN's generator") + 1, of="SAGAN's generator")
        layers = Layers("xavier", zero_bias=True)

        def norm(width: int) -> nn.Module:
            made = lambda outputs: layers.plain(nn.Linear(embed, outputs, bias=False))  # noqa: E731
            return ConditionalBatchNorm(width, made, momentum=momentum)

        self.project = layers.linear(latent, maps[0] * 16)
        up = partial(UpBlock, layers=layers, norm=norm)
        self.blocks = nn.ModuleList(up(a, b) for a, b in pairwise(maps))
        self.attends = None if attention is None else doublings(attention, 4, of="SAGAN's attention") - 1
        if self.attends is not None:
            self.attention = SelfAttention(maps[self.attends + 1], layers=layers, bias=True)
        self.norm = nn.BatchNorm2d(maps[-1], momentum=momentum_out)
        self.out = layers.conv(maps[-1], channels)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images from latents z, standard normal, and labels y."""
        condition = self.embedding(y)
        h = self.project(z).unflatten(1, (-1, 4, 4))
        for i, block in enumerate(self.blocks):
            h = block(h, condition)
            if i == self.attends:
                h = self.attention(h)
        return to_pixels(torch.tanh(self.out(F.relu(self.norm(h)))))


class SaganDiscriminator(nn.Module):
    """Images (N, channels, size, size) in [0, 1] and labels (N,) float -> scores (N,), high for real images.

    Args:
        embedding: labels (N,) to vectors (N, embed).
        embed: length of these vectors.
        channels: of the image.
        size: height and width, 4 times a power of 2.
        widths: channels after each block: one for every halving down to 4x4, then one more; or one number for all.
        attention: height of the map that attends to itself; None for no attention.

    Raises:
        ValueError: ``size`` is not 4 times a power of 2, or a wrong number of widths.
    """

    def __init__(
        self,
        *,
        embedding: nn.Module,
        embed: int = 128,
        channels: int = 3,
        size: int = 64,
        widths: int | Sequence[int] = (64, 128, 256, 512, 1024),
        attention: int | None = 32,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        halvings = doublings(size, 4, of="SAGAN's discriminator")
        maps = widths_of(widths, halvings + 1, of="SAGAN's discriminator")
        layers = Layers("xavier", zero_bias=True)
        self.blocks = nn.Sequential()
        for i, (a, b) in enumerate(zip([channels, *maps], maps, strict=False)):
            self.blocks.append(DownBlock(a, b, layers=layers, halve=i < halvings, first=i == 0))
            if size >> min(i + 1, halvings) == attention and i < halvings:
                self.blocks.append(SelfAttention(b, layers=layers, bias=True))
        self.linear = layers.linear(maps[-1] * 16, 1)
        self.project = layers.linear(embed, maps[-1] * 16, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores w h + <P e(y), h>, where h is the flattened last map and e(y) the label's vector."""
        h = F.relu(self.blocks(from_pixels(x))).flatten(1)
        return verdict(h, self.linear, self.project(self.embedding(y)))
