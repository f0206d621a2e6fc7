"""Handwritten digits on textured ground with a class for every pixel: segmentation that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.sides import sides
from kd_lightning.data.dataset import Dataset, Split, fit_to
from kd_lightning.data.datasets.pools import pools, shares
from kd_lightning.errors import DataError

CLASSES = ["ground", *map(str, range(10))]
INK, FAINT = 0.5, 0.2
"""A pixel of more ink than the first is the digit's, of less than the second the ground's, between them void."""


def load(
    *,
    task: Segmentation,
    base: Literal["digits", "mnist"] = "digits",
    root: str | Path = "data",
    size: int | Sequence[int] = (32, 48),
    digit: int = 16,
    count: int = 3,
    train: int = 600,
    val: int = 100,
    test: int = 200,
    seed: int = 0,
    download: bool = False,
) -> Dataset:
    """Draw scenes of ``count`` digits, grey; no digit is in scenes of two parts, and none twice in a scene.

    A scene is cut into ``count`` equal strips along its longer side, and each digit has a random place in its own, so
    that digits do not overlap. The ground is a wave of random direction, length and phase with noise, darker than ink.

    Args:
        task: of 11 classes.
        base: scikit-learn's 1,797 digits of 8x8, or MNIST.
        root: of MNIST's files.
        size: height and width, or one number for both.
        digit: side of a digit in pixels.
        count: digits of a scene.
        train: number of training scenes.
        val: number of validation scenes; 0 for none.
        test: number of test scenes.
        seed: of the choice of digits, places and grounds.
        download: let torchvision fetch MNIST.

    Raises:
        DataError: an unknown base, MNIST cannot be read, or the digits find no place.
    """
    longer, shorter = max(sides(size)), min(sides(size))
    if shorter < digit or longer // count < digit:
        raise DataError(
            f"dense_digits: {count} digits of {digit} pixels have no room in {'x'.join(map(str, sides(size)))}: set "
            f"data.size=[{digit},{digit * count}] or larger"
        )
    found, layout = pools(base, root, download, instead="data.base=digits")
    generators = [torch.Generator().manual_seed(2 * seed + number) for number in range(len(found))]
    # A seventh of the digits is for each of validation and test; scenes draw from their part's digits again and again
    few = len(found[0]) // 7
    wanted = {"val": few, "train": len(found[0]) - (2 if len(found) == 1 else 1) * few}
    places = shares("dense_digits", base, found, wanted, None if len(found) > 1 else few, generators)
    scenes = {"train": train, "val": val, "test": test}
    drawn: dict[str, Split | None] = {}
    for number, (part, n) in enumerate(scenes.items()):
        pool, chosen = places[part]
        digits = Split(found[pool].images[chosen], found[pool].labels[chosen])
        generator = torch.Generator().manual_seed(1000 * seed + number)
        drawn[part] = _scenes(digits, n, sides(size), digit, count, task.void, generator) if n else None
    return Dataset(
        "dense_digits",
        CLASSES,
        drawn["train"],
        drawn["val"],
        drawn["test"],
        layout,
        "raw",
        task=task,
    )


def _scenes(
    digits: Split, n: int, size: tuple[int, int], digit: int, count: int, void: int, generator: torch.Generator
) -> Split:
    height, width = size
    ink = torch.zeros(n, height, width)
    labels = torch.zeros(n, height, width, dtype=torch.uint8)
    small = fit_to(digits.images, size=digit, channels=1).squeeze(1).float()
    small = small / small.amax((1, 2), keepdim=True).clamp(min=1)
    along = 1 if width >= height else 0  # the longer side is cut into strips
    strip = size[along] // count
    room = [size[0] - digit, size[1] - digit]
    room[along] = strip - digit
    for i in range(n):
        for k, which in enumerate(torch.randperm(len(small), generator=generator)[:count].tolist()):
            corner = [int(torch.randint(r + 1, (), generator=generator)) for r in room]
            corner[along] += k * strip
            there = slice(corner[0], corner[0] + digit), slice(corner[1], corner[1] + digit)
            ink[i][there] = small[which]
            label = torch.where(small[which] > INK, int(digits.labels[which]) + 1, void)
            labels[i][there] = torch.where(small[which] < FAINT, 0, label).to(torch.uint8)
    ground = _grounds(n, size, generator)
    light = 0.75 + 0.25 * torch.rand(n, 1, 1, generator=generator)
    pixels = ground * (1 - ink) + light * ink
    return Split((255 * pixels).round().clamp(0, 255).to(torch.uint8).unsqueeze(1), labels)


def _grounds(n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Waves with noise, (n, H, W), from about 0.05 to 0.5."""
    height, width = size
    draw = torch.rand(4, n, 1, 1, generator=generator)
    angle, length, phase = draw[0] * torch.pi, 4 + 8 * draw[1], 2 * torch.pi * draw[2]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    wave = torch.sin(2 * torch.pi * (x * angle.cos() + y * angle.sin()) / length + phase)
    coarse = torch.randn(n, 1, height // 4 + 1, width // 4 + 1, generator=generator)
    noise = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[:, 0]
    return (0.15 + 0.15 * draw[3] + 0.08 * wave + 0.05 * noise).clamp(0.02, 0.55)
