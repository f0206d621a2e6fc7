"""Small images and label maps in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def put(path: Path, pixels: Any, mode: str | None = None, **how: Any) -> None:
    """Write an image of these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    if mode == "P":
        picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode="L")
        picture.putpalette(how.pop("palette", [7 * i % 256 for i in range(768)]))
    picture.save(path, **how)


def scene(number: int, high: int = 6, wide: int = 8) -> np.ndarray:
    return np.full((high, wide, 3), 10 * number + 20)


def halves(left: int, right: int, high: int = 6, wide: int = 8) -> np.ndarray:
    pixels = np.full((high, wide), left)
    pixels[:, wide // 2 :] = right
    return pixels
