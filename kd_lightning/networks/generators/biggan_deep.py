"""BigGAN-deep (Brock, Donahue and Simonyan, ICLR 2019, arXiv 1809.11096): the generator of which weights are published.

Latent and class make one condition, from which the first map and gain and bias of every norm follow. The norms do not
count: means and variances of 51 truncations from 0 to 1 are part of the weights, so that an image does not depend on
those beside it, nor on the mode. For images of 128, 256 and 512 pixels and ImageNet's classes it has 50,388,609,
55,880,833 and 56,163,905 parameters.

Deviations (paper / published code / here):
    * Statistics between two rows of the table: - / weighed the wrong way round, and at 0.14, 0.28, 0.56, 0.58 and 0.94
      those of a neighbour, by rounding / the same, for which CGN's weights were trained; ``interpolation="linear"``
      puts both right. At 0.3, 0.5 and 1 there is no difference.
    * Output: - / the first 3 of as many maps as the last layer has / the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.core.sides import one_side
from kd_lightning.networks.generators.gan_blocks import BottleneckUpBlock, Layers, SelfAttention, to_pixels

Interpolation = Literal["reference", "linear"]
Step = tuple[bool, int, int]

EPS = 1e-4
STATISTICS = 51
_START: tuple[Step, ...] = ((False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8))
_MORE: tuple[Step, ...] = ((False, 8, 8), (True, 8, 8))
_END: tuple[Step, ...] = ((False, 8, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1))
LAYERS: dict[int, tuple[Step, ...]] = {
    128: _START + _END,
    256: _START + _MORE + _END,
    512: _START + _MORE + _END + ((False, 1, 1), (True, 1, 1)),
}
"""Of each size: whether a block doubles height and width, and what it takes and gives, in ``ch`` channels."""


class BigGanDeepGenerator(nn.Module):
    """Latents (N, latent) and classes -> images (N, 3, size, size) in [0, 1].

    Args:
        size: height and width.
        num_classes: of the labels.
        latent: length of z, and of a class's vector.
        ch: channels of the last map, at least 3; the first has 16 times as many.
        layers: blocks as in ``LAYERS``; None for those of the size.
        attention: the block before which the map attends to itself.
        interpolation: of the norms' statistics, see the module.

    Raises:
        ValueError: blocks that do not fit together or do not reach the size.
    """

    def __init__(
        self,
        *,
        size: int = 256,
        num_classes: int = 1000,
        latent: int = 128,
        ch: int = 128,
        layers: Sequence[Sequence[int]] | None = None,
        attention: int = 8,
        interpolation: Interpolation = "reference",
    ) -> None:
        super().__init__()
        if interpolation not in ("reference", "linear"):
            raise ValueError(f"BigGAN-deep: interpolation is reference or linear, got {interpolation!r}")
        steps = _checked(layers, one_side(size, of="BigGAN-deep"), ch, attention)
        self.latent = latent
        made = Layers("normal", eps=EPS)
        condition = 2 * latent
        self.embeddings = nn.Linear(num_classes, latent, bias=False)
        self.gen_z = made.linear(condition, 4 * 4 * 16 * ch)
        norm = partial(_ConditionalNorm, condition=condition, layers=made, interpolation=interpolation)
        self.layers = nn.ModuleList()
        for i, (double, inputs, outputs) in enumerate(steps):
            if i == attention:
                self.layers.append(SelfAttention(inputs * ch, layers=made, bias=False))
            self.layers.append(BottleneckUpBlock(inputs * ch, outputs * ch, layers=made, norm=norm, double=double))
        self.bn = _Statistics(ch, interpolation)
        self.weight, self.bias = nn.Parameter(torch.ones(ch)), nn.Parameter(torch.zeros(ch))
        self.conv_to_rgb = made.conv(ch, ch)

    def forward(self, z: Tensor, y: Tensor, truncation: float = 1.0) -> Tensor:
        """Images of latents and classes.

        Args:
            z: (N, latent), of a normal cut off at 2 deviations, times ``truncation``.
            y: classes (N,) int64, or weights of all of them (N, num_classes), whose vectors are mixed so.
            truncation: in (0, 1]; chooses the norms' statistics.

        Raises:
            ValueError: another truncation.
        """
        if not 0 < truncation <= 1:
            raise ValueError(f"BigGAN-deep: truncation must be above 0 and at most 1, got {truncation}")
        vector = self.embeddings(y) if y.is_floating_point() else F.embedding(y, self.embeddings.weight.T)
        condition = torch.cat([z, vector], 1)
        h = self.gen_z(condition).unflatten(1, (4, 4, -1)).movedim(3, 1)  # the published weights have channels last
        for layer in self.layers:
            h = layer(h, condition, truncation) if isinstance(layer, BottleneckUpBlock) else layer(h)
        mean, variance = self.bn(truncation)
        h = F.batch_norm(h, mean, variance, self.weight, self.bias, eps=EPS)
        return to_pixels(torch.tanh(self.conv_to_rgb(F.relu(h))[:, :3]))


class _Statistics(nn.Module):
    """Mean and variance of each channel, in a table of truncations 0, 0.02 ... 1."""

    running_means: Tensor
    running_vars: Tensor

    def __init__(self, channels: int, interpolation: Interpolation) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.register_buffer("running_means", torch.zeros(STATISTICS, channels))
        self.register_buffer("running_vars", torch.ones(STATISTICS, channels))

    def forward(self, truncation: float) -> tuple[Tensor, ...]:
        place = truncation / (1 / (STATISTICS - 1))
        part, row = math.modf(place)
        right = self.interpolation == "linear"
        return tuple(_between(table, int(row), part, right) for table in (self.running_means, self.running_vars))


def _between(table: Tensor, row: int, part: float, right: bool) -> Tensor:
    """The row itself where nothing is left of it; else weighed with the next, ``right`` or as published."""
    if part == 0:
        return table[row]
    return torch.lerp(table[row], table[row + 1], part if right else 1 - part)


class _ConditionalNorm(nn.Module):
    """(1 + scale(c)) (x - mean) / deviation + offset(c), with the statistics of a truncation."""

    def __init__(self, channels: int, condition: int, *, layers: Layers, interpolation: Interpolation) -> None:
        super().__init__()
        self.statistics = _Statistics(channels, interpolation)
        self.scale = layers.linear(condition, channels, bias=False)
        self.offset = layers.linear(condition, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor, truncation: float) -> Tensor:
        mean, variance = self.statistics(truncation)
        gain = (1 + self.scale(condition)) * (variance + EPS).rsqrt()
        return torch.addcmul((self.offset(condition) - mean * gain)[..., None, None], x, gain[..., None, None])


def _checked(layers: Sequence[Sequence[int]] | None, size: int, ch: int, attention: int) -> list[Step]:
    if layers is None and size not in LAYERS:
        raise ValueError(f"BigGAN-deep has blocks for sizes {sorted(LAYERS)}, got {size}: give layers for another")
    steps = [(bool(double), inputs, outputs) for double, inputs, outputs in (layers or LAYERS[size])]
    reached = 4 << sum(double for double, _, _ in steps)
    if reached != size:
        raise ValueError(f"BigGAN-deep: these layers reach {reached} pixels, size says {size}")
    widths = [16, *(outputs for _, _, outputs in steps)]
    if [inputs for _, inputs, _ in steps] != widths[:-1] or widths[-1] != 1:
        raise ValueError(f"BigGAN-deep: layers begin at 16, end at 1 and take what the one before gives, got {steps}")
    if any(outputs not in (inputs, inputs / 2) for _, inputs, outputs in steps):
        raise ValueError(f"BigGAN-deep: a layer keeps its channels or halves them, got {steps}")
    if ch < 3 or not 0 <= attention < len(steps) or ch * steps[attention][1] < 8:
        raise ValueError(
            f"BigGAN-deep: ch must be at least 3 and attention one of {len(steps)} layers, got {ch} and {attention}"
        )
    return steps
