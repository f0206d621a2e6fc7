"""Augmentation of a whole batch at once, on its device, with different random values for every image.

Each is called with float images (N,C,H,W) in [0,1] and a ``torch.Generator`` on the same device, its only source of
randomness, and returns images of the same shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RandomCrop:
    """Crop at a random place of the image with ``padding`` black pixels around it."""

    padding: int = 4

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Shift every image by up to ``padding`` pixels in each direction."""
        n, channels, height, width = x.shape
        padded = F.pad(x, (self.padding,) * 4)
        corner = torch.randint(2 * self.padding + 1, (2, n, 1), generator=generator, device=x.device)
        rows = corner[0] + torch.arange(height, device=x.device)
        columns = corner[1] + torch.arange(width, device=x.device)
        flat = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
        index = flat.view(n, 1, height * width).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, index).view_as(x)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with probability ``p``."""

    p: float = 0.5

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mirror each image with probability ``p``."""
        flipped = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < self.p
        return torch.where(flipped, x.flip(3), x)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, enlarged to its size by bilinear interpolation; gradients pass through it.

    The part lies inside the image and covers a fraction of the area drawn from ``scale``; the ratio of its sides
    is drawn log-uniformly from ``ratio``, and sides are clamped to the image's.
    """

    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Crop a different part of every image."""
        draw = torch.rand(4, len(x), generator=generator, device=x.device)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * draw[0]
        ratio = (self.ratio[0] / self.ratio[1]) ** -draw[1] * self.ratio[0]
        sides = torch.stack([area * ratio, area / ratio]).sqrt().clamp(max=1)  # fractions: width, height
        centre = (2 * draw[2:] - 1) * (1 - sides)
        theta = torch.zeros(len(x), 2, 3, device=x.device)
        theta[:, 0, 0], theta[:, 1, 1] = sides
        theta[:, :, 2] = centre.T
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        # at the edge, half a pixel lies outside: repeat the last one instead of blending in black
        return F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False).to(x.dtype)


@dataclass(frozen=True)
class RandomAffine:
    """Rotate about the centre and shift, by bilinear interpolation.

    Args:
        degrees: the angle is drawn uniformly from -degrees to degrees.
        shift: fraction of the image's sides; drawn from -shift to shift for each direction.
        fill: pixels from outside: ``border`` repeats the image's edge, ``zeros`` is black.
    """

    degrees: float = 10.0
    shift: float = 0.1
    fill: Literal["border", "zeros"] = "border"

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Rotate and shift every image differently."""
        draw = 2 * torch.rand(3, len(x), generator=generator, device=x.device) - 1
        angle, aspect = draw[0] * self.degrees * math.pi / 180, x.shape[-2] / x.shape[-1]
        theta = torch.empty(len(x), 2, 3, device=x.device)
        theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
        theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * aspect, angle.sin() / aspect
        theta[:, :, 2] = 2 * self.shift * draw[1:].T  # the image is 2 wide
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x.float(), grid, padding_mode=self.fill, align_corners=False).to(x.dtype)
