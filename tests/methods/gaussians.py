"""Points of 8 Gaussians on a circle or 25 on a grid, the toy of evolving generators, and what a generator has of them.

A point is an image of 1x2 pixels in data units: the plane is [-1, 1]^2 there where a generator ends in tanh.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kd_lightning.data.batches import Batch
from kd_lightning.networks.generators.gan_blocks import from_pixels, to_pixels


def centres(modes: int) -> Tensor:
    """8 on a circle, or 25 on a grid, (modes, 2) within [-0.71, 0.71]."""
    if modes == 8:
        angle = torch.arange(8) * math.pi / 4
        return torch.stack([angle.cos(), angle.sin()], 1) / 2**0.5
    side = torch.linspace(-1, 1, 5) / 2**0.5
    return torch.cartesian_prod(side, side)


def points(n: int, modes: int, std: float, rng: torch.Generator) -> Tensor:
    """Points (n, 2), of every Gaussian alike."""
    middle = centres(modes)[torch.randint(modes, (n,), generator=rng)]
    return middle + std * torch.randn(n, 2, generator=rng)


class Points:
    """A loader of ``rounds`` batches of fresh points."""

    def __init__(self, rounds: int, batch: int, modes: int, std: float) -> None:
        self.rounds, self.batch, self.modes, self.std = rounds, batch, modes, std

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[Batch]:
        rng = torch.Generator().manual_seed(0)
        for _ in range(self.rounds):
            yield Batch(to_pixels(points(self.batch, self.modes, self.std, rng))[:, None, None], None)


def net(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        *(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))
    )


class Thrower(nn.Module):
    """Latents (N, 2) to points."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = net(2, 2, width)

    def forward(self, z: Tensor) -> Tensor:
        return to_pixels(self.net(z))[:, None, None]


class Umpire(nn.Module):
    """Points to logits."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = net(2, 1, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(from_pixels(x).flatten(1)).squeeze(1)


def modes_covered(made: Tensor, modes: int, std: float, share: float = 0.01) -> int:
    """Gaussians that have at least ``share`` of the points (N, 2) within three standard deviations."""
    near = torch.cdist(made, centres(modes)) < 3 * std
    return int((near.double().mean(0) >= share).sum())


def mmd(a: Tensor, b: Tensor) -> float:
    """Squared MMD of points (N, 2) and (M, 2), with five Gaussian kernels around the mean squared distance."""
    both = torch.cat([a, b]).double()
    squares = torch.cdist(both, both).square()
    n = len(both)
    widths = squares.sum() / (n * n - n) / 4 * 2.0 ** torch.arange(5)
    kernel = torch.exp(-squares[..., None] / widths).sum(-1)
    k = len(a)
    return float(kernel[:k, :k].mean() + kernel[k:, k:].mean() - 2 * kernel[:k, k:].mean())
