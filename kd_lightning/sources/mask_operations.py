"""Operations on mask, texture and background before they are combined: SKDCGN's study of the composition of images.

Ambekar et al., *SKDCGN: Source-free Knowledge Distillation of Counterfactual Generative Networks using cGANs* (ECCV
workshops 2022, arXiv 2208.04226). Each is called with a mask (N, 1, H, W), a texture and a background (N, 3, H, W), all
in [0, 1], and a ``torch.Generator`` on the same device, its only source of randomness. Gradients pass through it, so
that it can be used in a generator's training as well as for the generation of images. Two further parts of the study
are settings: the weight of the mask's entropy, and the number of counterfactuals.

Deviations (paper / authors' code / here): what the paper says of them was not read.
    * Noise: - / standard deviation 1, in runs called *noise01* / 0.1; with 1 a small classifier learns nothing.
    * Rotation: - / one angle per call, nearest pixel / one angle per image, bilinear.
    * Weights: - / free variables that are never set, textures in [-1, 1], not clipped / textures are weighted about
      grey, which is 0 in [-1, 1]; the result is clipped to [0, 1].
    * Jitter: - / of the data's images, one random order of the four / of texture and background independently, in
      the order brightness, contrast, saturation, hue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kd_lightning.data.augment import RandomAffine
from kd_lightning.errors import ConfigError
from kd_lightning.losses.counterfactual import HIGHEST, LOWEST

Parts = tuple[Tensor, Tensor, Tensor]
"""Mask, texture and background."""


class Operator(Protocol):
    """An operation on the parts of images; its ``repr`` gives all of its settings."""

    def __call__(self, mask: Tensor, fg: Tensor, bg: Tensor, rng: torch.Generator) -> Parts:
        """The changed mask, texture and background, of the same shapes."""


def applied(operators: Iterable[Operator], mask: Tensor, fg: Tensor, bg: Tensor, rng: torch.Generator) -> Parts:
    """Apply the operators in order."""
    for operator in operators:
        mask, fg, bg = operator(mask, fg, bg, rng)
    return mask, fg, bg


@dataclass(frozen=True)
class MaskNoise:
    """m + N(0, std^2), clipped to [0.0001, 0.9999].

    Args:
        std: standard deviation of the noise; masks range from 0 to 1.
    """

    std: float = 0.1

    def __call__(self, mask: Tensor, fg: Tensor, bg: Tensor, rng: torch.Generator) -> Parts:
        """Add independent noise to every pixel of the mask."""
        noise = torch.randn(mask.shape, generator=rng, device=mask.device)
        return (mask + self.std * noise).clamp(LOWEST, HIGHEST), fg, bg


@dataclass(frozen=True)
class Opacity:
    """factor * m: the background shows through the shape.

    Args:
        factor: between 0, no shape, and 1, no change.

    Raises:
        ConfigError: the factor is outside [0, 1].
    """

    factor: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ConfigError(f"mask_operations: Opacity.factor={self.factor}: expected a number between 0 and 1")

    def __call__(self, mask: Tensor, fg: Tensor, bg: Tensor, rng: torch.Generator) -> Parts:
        """Uses no randomness."""
        return self.factor * mask, fg, bg


@dataclass(frozen=True)
class Rotation:
    """The mask rotated about its centre, filled with 0 from outside.

    Args:
        degrees: the angle is drawn uniformly from -degrees to degrees, for every image.
    """

    degrees: float = 180.0

    def __call__(self, mask: Tensor, fg: Tensor, bg: Tensor, rng: torch.Generator) -> Parts:
        """Rotate every mask by its own angle."""
        return RandomAffine(self.degrees, shift=0.0, fill="zeros")(mask, rng), fg, bg


@dataclass(frozen=True)
class Weights:
    """a * m, and textures weighted about grey by b and c, clipped to [0, 1].

    Args:
        mask: a.
        fg: b, of the texture.
        bg: c, of the background.
    """

    mask: float = 1.0
    fg: float = 1.0
    bg: float = 1.0

    def __call__(self, mask: Tensor, fg: Tensor, bg: Tensor, rng: torch.Generator) -> Parts:
        """Uses no randomness."""
        textures = (0.5 + weight * (x - 0.5) for weight, x in ((self.fg, fg), (self.bg, bg)))
        fg, bg = (x.clamp(0, 1) for x in textures)
        return (self.mask * mask).clamp(0, 1), fg, bg


@dataclass(frozen=True)
class Jitter:
    """Colour jitter of texture and background, as in torchvision's ColorJitter; the mask stays.

    Args:
        brightness: the factor is drawn uniformly from 1 - brightness to 1 + brightness; likewise the next two.
        contrast: about the mean grey of the image.
        saturation: about the grey of the pixel.
        hue: in turns of the colour wheel, from -hue to hue.
    """

    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.1

    def __call__(self, mask: Tensor, fg: Tensor, bg: Tensor, rng: torch.Generator) -> Parts:
        """Jitter every texture and every background independently."""
        return mask, self._coloured(fg, rng), self._coloured(bg, rng)

    def _coloured(self, x: Tensor, rng: torch.Generator) -> Tensor:
        brightness, contrast, saturation, hue = 2 * torch.rand(4, len(x), 1, 1, 1, generator=rng, device=x.device) - 1
        x = (x * (1 + self.brightness * brightness)).clamp(0, 1)
        x = _blended(_grey(x).mean((1, 2, 3), keepdim=True), x, 1 + self.contrast * contrast)
        x = _blended(_grey(x), x, 1 + self.saturation * saturation)
        return _turned(x, self.hue * hue)


def _blended(other: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (other + factor * (x - other)).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        raise ConfigError(
            f"mask_operations: Jitter changes colours, and these images have {x.shape[1]} channel(s), not 3"
        )
    return (x * x.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Colours (N, 3, H, W) in [0, 1] with their hue turned, lightest and darkest value of each pixel kept.

    The hue has six sectors; the distance to a channel's own sector gives the share of the chroma that it lacks.
    """
    (lightest, which), darkest = x.max(1, keepdim=True), x.min(1, keepdim=True).values
    chroma = lightest - darkest
    r, g, b = x.split(1, 1)
    sectors = torch.cat([g - b, b - r, r - g], 1) / chroma.where(chroma > 0, 1) + _column(x, 0, 2, 4)
    place = (_column(x, 5, 3, 1) + sectors.gather(1, which) + 6 * turns) % 6
    return lightest - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def _column(like: Tensor, *values: int) -> Tensor:
    return like.new_tensor(values).view(-1, 1, 1)
