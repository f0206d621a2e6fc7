"""Real digits, each rotated by an angle that is its label: regression that needs no data except the digits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.core.sides import Size, sides
from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset, Split, fit_to
from kd_lightning.data.datasets.pools import pools, shares
from kd_lightning.errors import DataError

CHUNK = 2048


def load(
    *,
    task: Regression,
    base: Literal["digits", "mnist"] = "mnist",
    root: str | Path = "data",
    size: Size = 16,
    train: int = 1000,
    val: int = 500,
    test: int | None = None,
    law: Literal["uniform", "peaked"] = "uniform",
    whole: bool = True,
    std: float = 25.0,
    seed: int = 0,
    download: bool = False,
) -> Dataset:
    """Load digits, split them, and rotate each by a random angle; no digit is in two parts.

    An angle depends only on seed, base and the digit itself. A larger ``train`` is a superset of a smaller one, and
    does not change ``val`` and, with MNIST, ``test``.

    Args:
        task: the range of the angles, in degrees counter-clockwise.
        base: scikit-learn's 1,797 digits, or MNIST.
        root: of MNIST's files.
        size: height and width in pixels, or one number for both.
        train: number of training images.
        val: number of validation images, none of them in ``train``; 0 for none.
        test: number of test images; None for all: MNIST's own, or those of ``digits`` in no other part.
        law: ``uniform``, or ``peaked``: normal around the middle of the range, truncated at its ends.
        whole: whole degrees only.
        std: of ``peaked``, in degrees.
        seed: of the choice of digits and of the angles.
        download: let torchvision fetch MNIST.

    Raises:
        DataError: fewer digits than wanted, an unknown base or law, or MNIST cannot be read.
    """
    found, layout = pools(base, root, download, instead="data.base=digits data.size=8")
    generators = [torch.Generator().manual_seed(2 * seed + number) for number in range(len(found))]
    places = shares("rotated_digits", base, found, {"val": val, "train": train}, test, generators)
    angles = [_angles(len(p), task, law, whole, std, g) for p, g in zip(found, generators, strict=True)]
    parts = {
        part: _turned(found[pool].images[chosen], angles[pool][chosen], size) if len(chosen) else None
        for part, (pool, chosen) in places.items()
    }
    return Dataset("rotated_digits", [], parts["train"], parts["val"], parts["test"], layout, "raw", task=task)


def _angles(n: int, task: Regression, law: str, whole: bool, std: float, generator: torch.Generator) -> Tensor:
    """Angles, float32 (n,), within the range; by the inverse distribution, so that each takes one random number."""
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    if law == "uniform" and whole:
        return (math.ceil(task.low) + (u * (math.floor(task.high) - math.ceil(task.low) + 1)).floor()).float()
    if law == "uniform":
        return task.denormalise(u)
    if law != "peaked":
        raise DataError(f"data.law={law}: expected uniform or peaked")
    middle = (task.low + task.high) / 2
    ends = torch.tensor([task.low - middle, task.high - middle], dtype=torch.float64) / std
    below, above = torch.special.ndtr(ends)
    drawn = middle + std * torch.special.ndtri(below + u * (above - below))
    return (drawn.round() if whole else drawn).clamp(task.low, task.high).float()


def _turned(images: Tensor, angles: Tensor, size: Size) -> Split:
    """Rotate at the finer of the digits' resolution and the wanted one."""
    fine = fit_to(images, size=[max(side, images.shape[-1]) for side in sides(size)], channels=1)
    pairs = zip(fine.split(CHUNK), angles.split(CHUNK), strict=True)
    return Split(fit_to(torch.cat([turned(*pair) for pair in pairs]), size=size, channels=1), angles)


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images uint8 (N,C,H,W) bilinearly, counter-clockwise about their centres, by ``degrees`` (N,).

    Pixels from outside are background, which is the image's darkest pixel.
    """
    background = images.amin((1, 2, 3), keepdim=True)
    angle = degrees.float().deg2rad()
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin(), angle.sin()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # zero padding of the difference from the background is the same as background padding of the image
    moved = F.grid_sample((images - background).float(), grid, padding_mode="zeros", align_corners=False)
    return (moved.round() + background).to(torch.uint8)
