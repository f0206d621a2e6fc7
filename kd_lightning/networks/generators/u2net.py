"""U2-Net (Qin et al., Pattern Recognition 2020, arXiv 2005.09007): saliency of every pixel.

A U-Net whose stages are U-Nets themselves. With the defaults it has 44,009,869 parameters; its small version, with
``mids=16, outs=64``, has 1,131,181.

Deviations (paper / authors' code / CGN's code / here):
    * Output: saliency of all seven maps / of all seven / of the merged one / CGN's.
    * Corners in resizing: - / not aligned / aligned / CGN's; ``align_corners=False`` for the authors'.
    * Input: - / divided by its largest value, then ImageNet's mean and deviation / [-1, 1] / CGN's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks.generators.gan_blocks import from_pixels, widths_of

DEPTHS = (7, 6, 5, 4, 4, 4)
"""Levels of the six stages of the encoder; the last two do not pool, nor does the fifth of the decoder."""


class U2Net(nn.Module):
    """Images (N, channels, H, W) in [0, 1] -> saliency (N, 1, H, W) in [0, 1].

    Published weights are meant for sizes near 320 pixels; any size works.

    Args:
        channels: of the image.
        mids: inner channels of the encoder's six stages and of the decoder's last, or one number for all.
        outs: output channels of the encoder's six stages, or one number for all.
        align_corners: of the bilinear resizing of maps, see the module's deviations.

    Raises:
        ValueError: a wrong number of widths.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        mids: int | Sequence[int] = (32, 32, 64, 128, 256, 256, 16),
        outs: int | Sequence[int] = (64, 128, 256, 512, 512, 512),
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        mid = widths_of(mids, len(DEPTHS) + 1, of="U2-Net's inner part")
        out = widths_of(outs, len(DEPTHS), of="U2-Net")
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([channels, *out], out, strict=False)):
            self.encoder.append(
                _Stage(inputs, mid[i], outputs, depth=DEPTHS[i], pooled=i < 4, align_corners=align_corners)
            )
        below = out[-1]
        sides = [below]
        for i in reversed(range(len(DEPTHS) - 1)):
            outputs = out[max(i - 1, 0)]
            inner = mid[i] if i else mid[-1]
            self.decoder.append(
                _Stage(below + out[i], inner, outputs, depth=DEPTHS[i], pooled=i < 4, align_corners=align_corners)
            )
            below = outputs
            sides.append(below)
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for width in reversed(sides))
        self.outconv = nn.Conv2d(len(DEPTHS), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Saliency (N, 1, H, W) of images."""
        h = from_pixels(x)
        maps: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            h = stage(_pooled(h) if i else h)
            maps.append(h)
        seen = [maps.pop()]
        for stage in self.decoder:
            skip = maps.pop()
            seen.append(stage(torch.cat([_resized(seen[-1], skip, self.align_corners), skip], 1)))
        verdicts = [side(h) for side, h in zip(self.sides, reversed(seen), strict=True)]
        full = [_resized(verdict, verdicts[0], self.align_corners) for verdict in verdicts]
        return torch.sigmoid(self.outconv(torch.cat(full, 1)))


class _Stage(nn.Module):
    """A U-Net added to its own first convolution: (N, inputs, H, W) -> (N, outputs, H, W).

    Where it does not pool, its convolutions are dilated instead.
    """

    def __init__(self, inputs: int, mid: int, outputs: int, *, depth: int, pooled: bool, align_corners: bool) -> None:
        super().__init__()
        self.pooled, self.align_corners = pooled, align_corners
        reach = [1] * (depth - 1) + [2] if pooled else [1 << i for i in range(depth)]
        self.enter = _conv(inputs, outputs)
        self.down = nn.ModuleList(_conv(mid if i else outputs, mid, dilation) for i, dilation in enumerate(reach))
        self.up = nn.ModuleList(_conv(2 * mid, mid if i else outputs, reach[i]) for i in reversed(range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        h = entered
        maps: list[Tensor] = []
        for i, conv in enumerate(self.down):
            h = conv(_pooled(h) if self.pooled and 0 < i < len(self.down) - 1 else h)
            maps.append(h)
        h = maps.pop()
        for conv in self.up:
            skip = maps.pop()
            h = conv(torch.cat([_resized(h, skip, self.align_corners), skip], 1))
        return h + entered


def _conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def _resized(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=align_corners)
