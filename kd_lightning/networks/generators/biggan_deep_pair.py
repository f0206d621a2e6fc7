"""BigGAN-deep (Brock, Donahue and Simonyan, ICLR 2019, appendix B), as cGAN-KD trains it on ImageNet-100.

Several bottleneck blocks at every size. A skip has no weights of its own: the generator's drops channels, the
discriminator's keeps all it has and adds convolved ones. One embedding of the classes is shared by all BatchNorms; it
goes to each of them together with the whole of z.

Deviations (paper / authors' code / here):
    * Last convolution of the generator: 3 channels / 128, of which 3 are used / as the paper.
    * Spectral norm: - / its smallest norm 1e-6 / 1e-12; power iteration in training mode alone, as in ``biggan``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks.generators.gan_blocks import (
    BottleneckUpBlock,
    ConditionalBatchNorm,
    Layers,
    SelfAttention,
    doublings,
    from_pixels,
    to_pixels,
    verdict,
    widths_of,
)


class BigGanDeepSmallGenerator(nn.Module):
    """Latents (N, latent) and classes (N,) int64 -> images (N, channels, size, size) in [0, 1].

    Args:
        num_classes: of the labels.
        latent: length of z.
        embed: length of a class's vector.
        channels: of the image.
        size: height and width, 4 times a power of 2.
        widths: channels of the maps of 4x4, 8x8 ... ``size``, never growing; one number for all alike.
        depth: blocks at each size.
        attention: height of the map that attends to itself; None for no attention.
        init: of all weights: ``normal`` of deviation 0.02, or ``orthogonal``.

    Raises:
        ValueError: a size that is never reached, or wrong widths.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        latent: int = 128,
        embed: int = 128,
        channels: int = 3,
        size: int = 128,
        widths: int | Sequence[int] = (2048, 2048, 1024, 512, 256, 128),
        depth: int = 2,
        attention: int | None = 64,
        init: Literal["normal", "orthogonal"] = "orthogonal",
    ) -> None:
        super().__init__()
        self.latent = latent
        maps = widths_of(widths, doublings(size, 4, of="BigGAN-deep's generator") + 1, of="BigGAN-deep's generator")
        if any(a < b for a, b in pairwise(maps)):
            raise ValueError(f"BigGAN-deep's generator drops channels and adds none, got widths {maps}")
        layers = Layers(init)

        def norm(width: int) -> nn.Module:
            return ConditionalBatchNorm(width, lambda outputs: layers.linear(latent + embed, outputs, bias=False))

        self.embed = layers.plain(nn.Embedding(num_classes, embed))
        self.project = layers.linear(latent + embed, maps[0] * 16)
        self.blocks = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(maps)):
            self.blocks.extend(
                BottleneckUpBlock(a, a, layers=layers, norm=norm, double=False) for _ in range(depth - 1)
            )
            self.blocks.append(BottleneckUpBlock(a, b, layers=layers, norm=norm, double=True))
            if 8 << i == attention:
                self.blocks.append(SelfAttention(b, layers=layers, bias=False))
        self.norm = nn.BatchNorm2d(maps[-1])
        self.out = layers.conv(maps[-1], channels)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images of latents z, standard normal, and labels y."""
        condition = torch.cat([z, self.embed(y)], 1)
        h = self.project(condition).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            h = block(h) if isinstance(block, SelfAttention) else block(h, condition)
        return to_pixels(torch.tanh(self.out(F.relu(self.norm(h)))))


class BigGanDeepSmallDiscriminator(nn.Module):
    """Images (N, channels, size, size) in [0, 1] and classes (N,) int64 -> verdicts (N,), high for real ones.

    Args:
        num_classes: of the labels.
        channels: of the image.
        size: height and width, ``final`` times a power of 2.
        widths: channels of the maps of ``size`` ... ``final``, never shrinking; one number for all alike.
        final: height and width of the last maps.
        depth: blocks at each size.
        attention: height of the map that attends to itself; None for no attention.
        init: see the generator.

    Raises:
        ValueError: a size that is never reached, or wrong widths.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int = 3,
        size: int = 128,
        widths: int | Sequence[int] = (128, 256, 512, 1024, 2048, 2048),
        final: int = 4,
        depth: int = 2,
        attention: int | None = 64,
        init: Literal["normal", "orthogonal"] = "orthogonal",
    ) -> None:
        super().__init__()
        halvings = doublings(size, final, of="BigGAN-deep's discriminator")
        maps = widths_of(widths, halvings + 1, of="BigGAN-deep's discriminator")
        if any(a > b for a, b in pairwise(maps)):
            raise ValueError(f"BigGAN-deep's discriminator adds channels and drops none, got widths {maps}")
        layers = Layers(init)
        self.blocks = nn.Sequential(layers.conv(channels, maps[0]))
        for i, (a, b) in enumerate(pairwise(maps)):
            self.blocks.append(_Down(a, b, layers=layers, halve=True))
            self.blocks.extend(_Down(b, b, layers=layers, halve=False) for _ in range(depth - 1))
            if size >> (i + 1) == attention:
                self.blocks.append(SelfAttention(b, layers=layers, bias=False))
        self.linear = layers.linear(maps[-1], 1)
        self.embed = layers.embedding(num_classes, maps[-1])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Linear in the summed map h, with a part for each class: w h + <e(y), h>."""
        h = F.relu(self.blocks(from_pixels(x))).sum((2, 3))
        return verdict(h, self.linear, self.embed(y))


class _Down(nn.Module):
    """(N, inputs, H, W) -> (N, outputs, H, W), or half of both."""

    def __init__(self, inputs: int, outputs: int, *, layers: Layers, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        inside = max(1, outputs // 4)
        widths = ((inputs, inside, 1), (inside, inside, 3), (inside, inside, 3))
        self.convs = nn.ModuleList(layers.conv(*each) for each in widths)
        self.out = layers.conv(inside, outputs, 1)
        self.skip = layers.conv(inputs, outputs - inputs, 1) if outputs > inputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = conv(F.relu(h))
        h = F.relu(h)
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return self.out(h) + (x if self.skip is None else torch.cat([x, self.skip(x)], 1))
