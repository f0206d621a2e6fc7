"""Ten striped textures and ten veined ones, drawn by rule or read from a folder of photographs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor

from kd_lightning.core.strangers import in_a_line
from kd_lightning.data.datasets.image_files import opened
from kd_lightning.errors import DataError

SIDE = 150
SEED = 0
STRIPED = (
    ("#e8811c", "#1d140d"), ("#f4f4f0", "#141414"), ("#f7d21e", "#1e3f9a"), ("#d8342a", "#f3e3c2"),
    ("#2f8f5b", "#d8f08a"), ("#7a4a24", "#eed7ac"), ("#2fb5d6", "#0d2440"), ("#d95fa6", "#4b1546"),
    ("#a9b3b8", "#5d2a1a"), ("#b9e01f", "#2c3a10"),
)  # fmt: skip
"""Two colours of each striped texture: tiger, zebra, angelfish, beetle ..."""

VEINED = (
    ("#2f7d2a", "#b9dd84"), ("#a32020", "#f2b48a"), ("#e3b52b", "#8a4f0f"), ("#7b4fa8", "#e7d4f5"),
    ("#1f5f5b", "#8fd9c7"), ("#f0c9d0", "#b3274f"), ("#5a3a22", "#c79a5f"), ("#dfe8c9", "#5b8a3a"),
    ("#23365f", "#9fc0ee"), ("#c9642a", "#fbe08c"),
)  # fmt: skip
"""Two colours of each veined texture, of blade and veins: leaves and petals."""


def drawn_textures(seed: int = SEED) -> Tensor:
    """Drawn textures, uint8 (2,10,3,150,150): striped ones first, then veined ones; the same for the same seed.

    Stripes are sinusoids through a sigmoid, rotated by pi k / 10, with a period of 5 to 17 pixels, slightly bent by
    noise. Veins are where two or three octaves of noise are near 0, at a frequency that depends on the class.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(STRIPED, VEINED, strict=True)
    drawn = [(_striped(k, s, generator), _veined(k, v, generator)) for k, (s, v) in enumerate(pairs)]
    return torch.stack([torch.stack(kind) for kind in zip(*drawn, strict=True)])


def _striped(k: int, colours: tuple[str, str], generator: torch.Generator) -> Tensor:
    period = 5 + 12 * ((7 * k) % 10) / 9  # neighbouring angles get very different periods
    y, x = torch.meshgrid(*(torch.arange(SIDE, dtype=torch.float32),) * 2, indexing="ij")
    angle = math.pi * k / 10
    along = x * math.cos(angle) + y * math.sin(angle) + 0.35 * period * _noise(4, generator)
    wave = torch.sigmoid(5 * (torch.sin(2 * math.pi * along / period) + 0.35 * _noise(10, generator)))
    return _mixed(wave, colours, 1 + 0.08 * _noise(30, generator))


def _veined(k: int, colours: tuple[str, str], generator: torch.Generator) -> Tensor:
    cells = 4 + ((3 * k) % 10)
    octaves = 2 + k % 2
    ridges = [_noise(cells * 2**o, generator).abs() / (0.14 + 0.03 * o) for o in range(octaves)]
    veins = torch.stack([(0.95 - 0.3 * o) * torch.exp(-(r**2)) for o, r in enumerate(ridges)]).amax(0)
    return _mixed(1 - veins, colours, 1 + 0.1 * _noise(8, generator))


def _noise(cells: int, generator: torch.Generator) -> Tensor:
    """Smooth noise (SIDE,SIDE), about N(0,1): cells x cells normal values, interpolated bicubically."""
    coarse = torch.randn(1, 1, cells, cells, generator=generator)
    fine = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False)[0, 0]
    return (fine - fine.mean()) / fine.std()


def _mixed(weight: Tensor, colours: tuple[str, str], light: Tensor) -> Tensor:
    """The first colour where ``weight`` (H,W) is 1, the second where it is 0, times ``light``; uint8 (3,H,W)."""
    first, second = (torch.tensor(ImageColor.getrgb(c)[:3])[:, None, None] for c in colours)
    return ((weight * first + (1 - weight) * second) * light).round().clamp(0, 255).to(torch.uint8)


def read_textures(folder: Path, *, at_least: int) -> Tensor:
    """Read photographs, uint8 (2,10,3,150,150), each resized to a square of 150 by nearest pixels.

    Args:
        folder: holds ``object`` and ``background``, each with ten images for the digits 0 to 9 in the order of their
            names. Names may begin with the digit.
        at_least: smallest allowed side in pixels.

    Raises:
        DataError: a folder does not hold ten images, a name has the wrong digit, or an image is damaged or too small.
    """
    return torch.stack([_ten(folder / part, at_least) for part in ("object", "background")])


def _ten(folder: Path, at_least: int) -> Tensor:
    wanted = f"expected ten images for the digits 0 to 9 in their order, such as {folder / '0_tiger.jpg'}"
    if not folder.is_dir():
        raise DataError(f"data.textures: there is no folder {folder}: {wanted}")
    found = sorted(f for f in folder.iterdir() if f.suffix.lower() in Image.registered_extensions())
    if len(found) != 10:
        raise DataError(f"data.textures: {folder} holds {len(found)} images: {wanted}")
    for digit, file in enumerate(found):
        if (number := re.match(r"\d+", file.name)) and int(number[0]) != digit:
            raise DataError(f"data.textures: {file} comes where {digit} is due: {wanted}")
    return torch.stack([_read(file, at_least) for file in found])


def _read(file: Path, at_least: int) -> Tensor:
    try:
        with opened(file) as image:
            picture = image.convert("RGB")
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise DataError(f"data.textures: cannot decode {file}: {in_a_line(error)}. Replace it") from error
    if min(picture.size) < at_least:
        width, height = picture.size
        raise DataError(
            f"data.textures: {file} is {width}x{height}, but crops are {at_least}x{at_least}: put a larger one there"
        )
    pixels = np.array(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
