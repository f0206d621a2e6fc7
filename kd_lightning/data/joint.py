"""Augmentation of images together with their label maps, on their device, different for every image.

Each is called with images (N,C,H,W) in [0,1], a ``torch.Generator`` on the same device and label maps (N,H,W), or None,
and returns images and maps. Images are interpolated bilinearly, maps by the nearest pixel. ``joint`` marks them: an
augmentation without it gets images only, and is refused where labels are maps, unless it says ``joint = False``
because it moves no pixel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.core.segmentation import VOID
from kd_lightning.errors import ConfigError


def moves_labels(augmentation: Any) -> bool:
    """Whether an augmentation takes label maps, too."""
    return bool(getattr(augmentation, "joint", False))


def refuse_apart(augmentations: Iterable[Any]) -> None:
    """Refuse augmentations that would move images and leave their label maps where they are.

    Raises:
        ConfigError: names the first.
    """
    for each in augmentations:
        if not hasattr(each, "joint"):
            raise ConfigError(
                f"augment: {type(each).__name__} would move the images and not their label maps: use those of "
                "kd_lightning.data.joint, such as FlipTogether and CropTogether, or augment=[]"
            )


@dataclass(frozen=True)
class FlipTogether:
    """Mirror left and right with probability ``p``."""

    p: float = 0.5
    joint = True

    def __call__(self, x: Tensor, generator: torch.Generator, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Mirror each image with probability ``p``."""
        flipped = torch.rand(len(x), generator=generator, device=x.device) < self.p
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
        return x, None if y is None else torch.where(flipped[:, None, None], y.flip(2), y)


@dataclass(frozen=True)
class CropTogether:
    """A random part of ``size`` pixels (height, width), of each image enlarged by a random factor of ``scale``.

    Args:
        size: of the part, one number for a square; no larger than the enlarged image, else what is outside is black
            and void.
        scale: range of the factor, drawn log-uniformly; [1, 1] crops without interpolation of pixels.
        void: label of pixels outside the image.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    void: int = VOID
    joint = True

    def __call__(self, x: Tensor, generator: torch.Generator, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Crop a different part of every image."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        n, device = len(x), x.device
        draw = torch.rand(3, n, generator=generator, device=device)
        factor = (self.scale[1] / self.scale[0]) ** draw[0] * self.scale[0]
        places = [
            self._places(wanted, side, factor, draw[1 + axis])
            for axis, (wanted, side) in enumerate(((height, x.shape[2]), (width, x.shape[3])))
        ]
        # grid_sample counts from the centre of the image, in halves of its sides
        rows, columns = (2 * p / side - 1 for p, side in zip(places, x.shape[2:], strict=True))
        grid = torch.stack(
            [columns[:, None, :].expand(n, height, width), rows[:, :, None].expand(n, height, width)], dim=3
        )
        cut = F.grid_sample(x.float(), grid, align_corners=False).to(x.dtype)
        if y is None:
            return cut, None
        row, column = (p.floor().long() for p in places)  # the pixel that holds the point, where it is in the image
        inside = ((row >= 0) & (row < x.shape[2]))[:, :, None] & ((column >= 0) & (column < x.shape[3]))[:, None, :]
        row, column = row.clamp(0, x.shape[2] - 1), column.clamp(0, x.shape[3] - 1)
        nearest = y[torch.arange(n, device=device)[:, None, None], row[:, :, None], column[:, None, :]]
        return cut, torch.where(inside, nearest, self.void)

    def _places(self, wanted: int, side: int, factor: Tensor, draw: Tensor) -> Tensor:
        """Where the part's pixel centres lie along an axis, (N, wanted), in pixels of the image from its edge."""
        room = (side * factor).round() - wanted  # whole pixels of the enlarged image
        start = torch.where(room >= 0, (draw * (room + 1)).floor().clamp(max=room.clamp(min=0)), (room / 2).floor())
        return (start[:, None] + torch.arange(wanted, device=factor.device) + 0.5) / factor[:, None]
