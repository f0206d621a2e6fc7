"""TinyGAN (Chang and Lu, ACCV 2020): a small conditional GAN distilled from a large one.

Residual generator of depthwise and pointwise convolutions; one vector for each class sets gain and bias of its
BatchNorms. The discriminator also returns its inner maps, which distillation compares. With the defaults, 1000 classes
and latents of 128 values, they have 3,070,659 (128x128) and 3,300,321 parameters.

Deviations (paper / authors' code / here):
    * Class vectors: - / start at a reduced table of ImageNet's classes, of deviation 0.0868 / at a normal of
      ``deviation``; the table is part of the published weights.
    * Gain and bias of the BatchNorms: - / meant to start at 1 and 0, but both start at the sum of the class vector's
      first values / ``cbn_init="fixed"`` starts at 1 and 0, ``"reference"`` as the code does.
    * skip: - / doubled, then convolved / convolved, then doubled, which is the same.
    * channels: 3 / 3 / 1 for masks is possible.
    * Latents of digits: - / SKDCGN's are the teacher's z and its vector of the label, 42 values / z and ``one_hot``,
      from which the first layer can compute any such vector.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from kd_lightning.core.sides import one_side
from kd_lightning.errors import SizeError
from kd_lightning.networks.generators.gan_blocks import from_pixels, to_pixels, verdict

CbnInit = Literal["fixed", "reference"]


class TinyGenerator(nn.Module):
    """Latents (N, latent) and classes (N,) int64 -> images (N, channels, size, size) in [0, 1].

    Args:
        num_classes: of the labels.
        latent: length of z.
        size: height and width, a multiple of 2 ** ``repeat``.
        conv_dim: channels of the last map; the first has 2 ** (``repeat`` - 1) times as many.
        repeat: blocks, each of which doubles height and width; all but the first halve the channels.
        embed: length of a class's vector.
        channels: of the image.
        one_hot: number of classes of the one-hot label that is appended to z in the first layer; 0 for z only.
        reduced: side to which images are reduced for a composition (``networks.generators.cgn.drawn_by``); None keeps
            ``size``.
        cbn_init: initial gain and bias of the conditional BatchNorms: ``fixed``, 1 and 0, or ``reference``.
        deviation: of the classes' vectors before training.

    Raises:
        ValueError: ``size`` is no multiple of 2 ** ``repeat``, or an unknown ``cbn_init``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        latent: int = 128,
        size: int = 128,
        conv_dim: int = 32,
        repeat: int = 5,
        embed: int = 128,
        channels: int = 3,
        one_hot: int = 0,
        reduced: int | None = None,
        cbn_init: CbnInit = "fixed",
        deviation: float = 1.0,
    ) -> None:
        super().__init__()
        size = one_side(size, of="TinyGAN")
        if size < 1 << repeat or size % (1 << repeat):
            raise SizeError(f"TinyGAN of {repeat} blocks: size must be a multiple of {1 << repeat}, got {size}")
        self.latent, self.one_hot, self.reduced, first = latent, one_hot, reduced, size >> repeat
        maps = [conv_dim << (repeat - 1), *(conv_dim << i for i in reversed(range(repeat)))]
        self.embedding = nn.Embedding(num_classes, embed)
        nn.init.normal_(self.embedding.weight, std=deviation)
        self.fc = nn.Linear(latent + one_hot, maps[0] * first * first)
        self.grid = (maps[0], first, first)
        self.blocks = nn.ModuleList(_TinyBlock(a, b, embed=embed, cbn_init=cbn_init) for a, b in pairwise(maps))
        self.bn = nn.BatchNorm2d(conv_dim)
        self.colorize = nn.Conv2d(conv_dim, channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images from latents z and labels y."""
        condition = self.embedding(y)
        if self.one_hot:
            z = torch.cat([z, F.one_hot(y, self.one_hot).to(z)], 1)
        h = self.fc(z).unflatten(1, self.grid)
        for block in self.blocks:
            h = block(h, condition)
        return to_pixels(torch.tanh(self.colorize(F.relu(self.bn(h)))))


class TinyDiscriminator(nn.Module):
    """Images (N, channels, H, W) in [0, 1] and classes (N,) int64 -> scores (N,), high for real images, and maps.

    Every layer halves height and width, and the last map is summed over positions: scores grow with the image's area.

    Args:
        num_classes: of the labels.
        conv_dim: channels of the first map, doubled by every further layer.
        repeat: number of layers.
        channels: of the image.
    """

    def __init__(self, *, num_classes: int, conv_dim: int = 32, repeat: int = 5, channels: int = 3) -> None:
        super().__init__()
        maps = [channels, *(conv_dim << i for i in range(repeat))]
        self.layers = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairwise(maps))
        self.fc_src = spectral_norm(nn.Linear(maps[-1], 1))
        self.embedding = spectral_norm(nn.Embedding(num_classes, maps[-1]))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores w h + <e(y), h> of the summed map h, and the map of every layer after its ReLU, the largest first."""
        h = from_pixels(x)
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.01)
            features.append(h)
        pooled = h.sum((2, 3))
        return verdict(pooled, self.fc_src, self.embedding(y)), features


class _ConditionalBatchNorm(nn.Module):
    """Gain(c) BN(x) + bias(c), both linear in a condition c (N, embed); 1 is not added to the gain."""

    def __init__(self, channels: int, *, embed: int, cbn_init: CbnInit) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, affine=False)
        self.embed = nn.Linear(embed, 2 * channels)
        with torch.no_grad():
            if cbn_init == "fixed":
                self.embed.weight.zero_()
                self.embed.bias[:channels] = 1
                self.embed.bias[channels:] = 0
            elif cbn_init == "reference":  # a bug of the code: fills along the condition instead of the channels
                self.embed.weight[:, :channels] = 1
                self.embed.weight[:, channels:] = 0
            else:
                raise ValueError(f"TinyGAN: cbn_init is fixed or reference, got {cbn_init!r}")

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = self.embed(condition)[..., None, None].chunk(2, 1)
        return torch.addcmul(bias, gain, self.bn(x))


class _TinyBlock(nn.Module):
    """Residual block that doubles height and width: (N, inputs, H, W) -> (N, outputs, 2H, 2W)."""

    def __init__(self, inputs: int, outputs: int, *, embed: int, cbn_init: CbnInit) -> None:
        super().__init__()
        self.cbn0 = _ConditionalBatchNorm(inputs, embed=embed, cbn_init=cbn_init)
        self.cbn1 = _ConditionalBatchNorm(outputs, embed=embed, cbn_init=cbn_init)
        self.dw_conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.pw_conv1 = nn.Conv2d(inputs, outputs, 1)
        self.dw_conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)
        self.pw_conv2 = nn.Conv2d(outputs, outputs, 1)
        self.c_sc = nn.Conv2d(inputs, outputs, 1)
        for depthwise in (self.dw_conv1, self.dw_conv2):
            nn.init.xavier_uniform_(depthwise.weight, gain=2**0.5)
        for pointwise in (self.pw_conv1, self.pw_conv2, self.c_sc):
            nn.init.xavier_uniform_(pointwise.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.pw_conv1(self.dw_conv1(_doubled(F.relu(self.cbn0(x, condition)))))
        h = self.pw_conv2(self.dw_conv2(F.relu(self.cbn1(h, condition))))
        return h + _doubled(self.c_sc(x))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
