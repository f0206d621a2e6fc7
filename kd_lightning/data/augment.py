"""Augmentation of a whole batch at once: every image has its own draw, on whatever device the batch is.

Each is called with float images (N,C,H,W) in [0,1] and a ``torch.Generator`` on the same device, from which
alone its randomness comes, and returns images of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        """Mirror every image or leave it."""
        flipped = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < self.p
        return torch.where(flipped, x.flip(3), x)
