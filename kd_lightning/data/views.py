"""Further views of a batch of images, for losses that compare them: (N, C, H, W) -> (V N, C, H, W), view by view.

The first N rows are the images themselves. What is random is drawn from torch's own generator, whose state is in
checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.data.augment import RandomAffine


def rotations(x: Tensor) -> Tensor:
    """The images, and the same turned by 90, 180 and 270 degrees: SSKD's four views.

    Raises:
        ValueError: they are not square.
    """
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"images that are turned by 90 degrees are square, got {x.shape[-2]}x{x.shape[-1]}")
    return torch.cat([x, *(x.rot90(k, (2, 3)) for k in (1, 2, 3))])


def with_strong(x: Tensor, *, degrees: float = 20.0, shift: float = 0.1, tone: float = 0.5) -> Tensor:
    """The images, and a strongly augmented view of each: MLKD's two.

    Turned, shifted, with another contrast and brightness, and a square of a quarter of the sides in grey. MLKD's
    authors draw from AutoAugment's policies for CIFAR instead.

    Args:
        x: images (N, C, H, W) in [0, 1].
        degrees: largest angle.
        shift: largest shift, in sides of the image.
        tone: contrast is multiplied by 1 - tone to 1 + tone; brightness moves by up to half of ``tone``.
    """
    rng = torch.Generator(x.device).manual_seed(int(torch.randint(2**62, ())))
    n, _, height, width = x.shape
    contrast, light, top, left = torch.rand(4, n, 1, 1, 1, device=x.device, generator=rng)
    moved = RandomAffine(degrees, shift)(x, rng)
    middle = moved.mean((1, 2, 3), keepdim=True)
    toned = (moved - middle) * (1 + tone * (2 * contrast - 1)) + middle + tone * (light - 0.5)
    rows = torch.arange(height, device=x.device)[:, None] / height - top * 0.75
    columns = torch.arange(width, device=x.device) / width - left * 0.75
    hidden = (rows >= 0) & (rows < 0.25) & (columns >= 0) & (columns < 0.25)
    return torch.cat([x, torch.where(hidden, 0.5, toned.clamp(0, 1)).to(x.dtype)])
