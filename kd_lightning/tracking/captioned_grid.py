"""A grid of images with a caption below each."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from kd_lightning.tracking.fonts import font_of
from kd_lightning.tracking.image_grids import INK, PAPER

LEAST = 72
"""Pixels to which images are enlarged at least, so that a caption fits below."""


def captioned(images: Tensor, captions: Sequence[str], *, columns: int = 10) -> Image.Image:
    """Images uint8 (N, C, H, W) in rows, enlarged to at least ``LEAST`` pixels, each with its caption below.

    Args:
        images: in row order.
        captions: one for each.
        columns: images per row.
    """
    n, _, height, width = images.shape
    zoom, gap, line = max(1, -(-LEAST // width)), 6, 16
    wide, tall = width * zoom, height * zoom
    columns = min(columns, n)
    picture = Image.new("RGB", (gap + columns * (wide + gap), gap + -(-n // columns) * (tall + line + gap)), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, image in enumerate(images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()):
        x, y = gap + i % columns * (wide + gap), gap + i // columns * (tall + line + gap)
        picture.paste(Image.fromarray(image).resize((wide, tall), Image.Resampling.NEAREST), (x, y))
        font, text = font_of(11, captions[i]), captions[i]
        while len(text) > 2 and font.getlength(text) > wide + gap - 2:  # the confidence at its end stays
            name, _, end = text.rpartition(" ")
            text = f"{name.rstrip('…')[:-1]}… {end}" if len(name.rstrip("…")) > 1 else text[:-1]
        draw.text((x + wide / 2, y + tall + line / 2), text, INK, font, anchor="mm")
    return picture
