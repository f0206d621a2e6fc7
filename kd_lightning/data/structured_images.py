"""Random images with the structure of photographs, and mixes of two images: questions where no data are at hand.

DIP-KD (arXiv 2604.25794, 2026) sums noise of all scales, bends the sum, and puts two such images together along random
shapes. Everything here is computed on the CPU from a generator, for images of any height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.data.loader import mixed_seed
from kd_lightning.errors import ConfigError

CHUNK = 250
"""Images made at a time; another number makes other images."""
LOWEST_STD = 0.02
"""An image that varies less is divided by this, so that rounding is not blown up to structure."""


def different(images: int, make: Callable[[torch.Generator], Tensor], seed: int) -> Tensor:
    """The first ``images`` different ones of all that ``make`` returns, as uint8.

    Args:
        images: their number.
        make: a generator to ``CHUNK`` images (CHUNK, C, H, W); values outside [0, 1] are clamped.
        seed: of the generators; one for each chunk, so that fewer images are the first of more.

    Raises:
        ConfigError: a chunk holds nothing new.
    """
    found: dict[bytes, Tensor] = {}
    for number in count():
        before = len(found)
        made = make(torch.Generator().manual_seed(mixed_seed(seed, number)))
        for image in (made.clamp(0, 1) * 255).round().to(torch.uint8):
            found.setdefault(sha256(image.numpy()).digest(), image)
        if len(found) >= images:
            break
        if len(found) == before:
            raise ConfigError(
                f"source.images={images}: these settings make {before} different images only. Ask about fewer, or "
                "lower source.mono"
            )
    return torch.stack(list(found.values())[:images])


def priors(
    images: int,
    shape: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    coarsest: int = 0,
    warp: bool = True,
    degrees: float = 45.0,
    elastic: float = 50.0,
    smoothness: float = 5.0,
    cut: bool = True,
    mono: float = 0.5,
    blur: float = 1.5,
    iterations: int = 10,
    standardise: bool = True,
) -> Tensor:
    """Structured random images uint8 (images, C, H, W), all different; fewer of them are the first of more.

    Args:
        images: their number.
        shape: (C, H, W).
        mean: of the data per channel, for ``standardise``.
        std: likewise.
        seed: of the images.
        coarsest: d of the coarsest noise, 2^d x 2^d values; that of the image's own pixels leaves plain noise.
        warp: whether to turn and bend the noise.
        degrees: largest angle of turning.
        elastic: strength of bending, in pixels.
        smoothness: standard deviation of the bending's blur, in pixels.
        cut: whether to put two images together.
        mono: share of single colours among what is put together.
        blur: standard deviation of the shapes' blur, in pixels; its kernel has 5 values.
        iterations: times that the shapes are blurred and driven apart.
        standardise: whether each image gets the mean and deviation of the data.

    Raises:
        ConfigError: these settings make too few different images.
    """
    channels, height, width = shape

    def chunk(rng: torch.Generator) -> Tensor:
        x = hierarchical(CHUNK, channels, side_of(height, width), rng, coarsest=coarsest)
        if warp:
            x = warped(x, rng, degrees=degrees, elastic=elastic, smoothness=smoothness)
        x = cropped(x, height, width, rng)
        if cut:
            other = x[torch.randperm(CHUNK, generator=rng)]
            x, other = (single_colours(each, mono, rng) for each in (x, other))
            x = mixed(x, other, masks(CHUNK, height, width, rng, blur=blur, iterations=iterations))
        return standardised(x, mean, std) if standardise else x

    return different(images, chunk, seed)


def side_of(height: int, width: int) -> int:
    """Side of the square on which images of that size are made: the next power of two, 2^d_max."""
    return 2 ** math.ceil(math.log2(max(height, width)))


def hierarchical(n: int, channels: int, side: int, rng: torch.Generator, *, coarsest: int = 0) -> Tensor:
    """Sums of uniform noise of 2^d x 2^d pixels, enlarged bilinearly, d = coarsest ... log2(side): (n, channels, S, S).

    The weights of an image are a softmax of standard normal numbers.
    """
    scales = range(min(coarsest, side.bit_length() - 1), side.bit_length())
    weights = torch.randn(n, len(scales), generator=rng).softmax(1)
    total = torch.zeros(n, channels, side, side)
    for d, weight in zip(scales, weights.T, strict=True):
        noise = torch.rand(n, channels, 2**d, 2**d, generator=rng)
        larger = noise if 2**d == side else F.interpolate(noise, size=side, mode="bilinear")
        total.addcmul_(larger, weight.view(-1, 1, 1, 1))
    return total


def warped(
    x: Tensor, rng: torch.Generator, *, degrees: float = 45.0, elastic: float = 50.0, smoothness: float = 5.0
) -> Tensor:
    """Images turned by a random angle and bent elastically; what comes from outside is black.

    Args:
        x: (N, C, S, S).
        rng: on the CPU.
        degrees: largest angle.
        elastic: factor of the displacement in pixels, uniform noise in [-1, 1] after a Gaussian blur.
        smoothness: standard deviation of that blur in pixels.
    """
    n, side = len(x), x.shape[-1]
    angle = (2 * torch.rand(n, generator=rng) - 1) * degrees * math.pi / 180
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin(), angle.sin()
    grid = F.affine_grid(theta, [n, 1, side, side], align_corners=False)
    blur = blurring(side, smoothness, reach=math.ceil(4 * smoothness))
    shift = blur @ (2 * torch.rand(n, 2, side, side, generator=rng) - 1) @ blur.T
    grid = grid + shift.permute(0, 2, 3, 1) * (elastic * 2 / side)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def cropped(x: Tensor, height: int, width: int, rng: torch.Generator) -> Tensor:
    """A part of each image (N, C, H, W) at a random place: (N, C, height, width), of the same type."""
    n, channels, *whole = x.shape
    top, left = (
        torch.randint(have - want + 1, (n, 1), generator=rng) for have, want in zip(whole, (height, width), strict=True)
    )
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    place = torch.arange(n).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
    return x[*place, rows[:, None, :, None], columns[:, None, None, :]]


def masks(
    n: int,
    height: int,
    width: int,
    rng: torch.Generator,
    *,
    blur: float = 1.5,
    kernel: int = 5,
    iterations: int = 10,
) -> Tensor:
    """Random shapes (n, 1, height, width) in [0, 1]: uniform noise, blurred and driven apart in turns."""
    mask = torch.rand(n, 1, height, width, generator=rng)
    down, across = (blurring(side, blur, reach=kernel // 2) for side in (height, width))
    for _ in range(iterations):
        mask = diverging(down @ mask @ across.T)
    return mask


def diverging(m: Tensor) -> Tensor:
    """Values in [0, 1] moved away from 1/2 towards 0 and 1: 2 m^2 below 1/2, else 1 - 2 (1 - m)^2.

    The equation printed in DIP-KD has the two branches exchanged, which leaves [0, 1]; this is what its own four
    conditions say: 0, 1/2 and 1 stay, and the slope is 0 at both ends.
    """
    return torch.where(m < 0.5, 2 * m**2, 1 - 2 * (1 - m) ** 2)


def mixed(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """``x`` where the mask is 1, ``y`` where it is 0."""
    return y + mask * (x - y)


def single_colours(like: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Images with a random ``share`` of them replaced by one uniform colour each."""
    n, channels = like.shape[:2]
    colours = torch.rand(n, channels, 1, 1, generator=rng)
    return torch.where(torch.rand(n, 1, 1, 1, generator=rng) < share, colours, like)


def standardised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Each image by itself (x - its mean) / its standard deviation, times ``std`` plus ``mean`` of each channel.

    Both are taken over all pixels and channels. Values may leave [0, 1].
    """
    own, spread = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True, correction=0)
    wanted, deviation = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))
    return (x - own) / spread.clamp_min(LOWEST_STD) * deviation + wanted


def blurring(side: int, sigma: float, *, reach: int) -> Tensor:
    """A matrix (side, side) that blurs columns with a Gaussian of 2 reach + 1 values, reflected at the borders."""
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    period = max(1, 2 * (side - 1))
    place = (torch.arange(side)[:, None] + offsets) % period
    place = torch.minimum(place, period - place) if side > 1 else place * 0
    return torch.zeros(side, side).scatter_add_(1, place, (weights / weights.sum()).expand(side, -1))
