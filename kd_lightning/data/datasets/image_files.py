"""Image files: the formats that are read, and their pixels at one size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import ExifTags, Image, ImageOps

from kd_lightning.core import strangers
from kd_lightning.core.sides import Size, sides
from kd_lightning.errors import ConfigError

ENDINGS = {
    "jpeg": "jpg jpeg jpe jfif mpo", "png": "png apng", "webp": "webp", "bmp": "bmp dib", "gif": "gif",
    "ppm": "ppm pbm pnm pfm", "pgm": "pgm", "tiff": "tif tiff", "avif": "avif avifs",
    "jpeg2000": "jp2 j2k jpc jpf jpx j2c", "ico": "ico cur", "icns": "icns", "tga": "tga icb vda vst", "qoi": "qoi",
    "dds": "dds", "pcx": "pcx dcx", "psd": "psd", "sgi": "sgi bw rgb rgba", "sun": "ras", "xbm": "xbm", "xpm": "xpm",
    "msp": "msp", "im": "im", "fits": "fit fits", "blp": "blp", "fli": "fli flc", "ftex": "ftc ftu", "pixar": "pxr",
    "pcd": "pcd",
}  # fmt: skip
"""Encoding -> endings of the files that Pillow reads by itself, without another program."""
ENCODINGS = {f".{ending}": name for name, endings in ENDINGS.items() for ending in endings.split()}
FORMATS = tuple(sorted({"CUR", "DCX", *(name.upper() for name in ENDINGS if name != "pgm")}))
USUAL = ".jpg, .png, .webp, .bmp, .gif, .tiff"
MOST_PIXELS = 64_000_000
"""Most pixels of an image, and of the image resized by its shorter side."""
RESAMPLE = Image.Resampling.BILINEAR

Resize = Literal["crop", "stretch", "pad", "imagenet"]
"""How an image of another shape gets the height and width that are wanted, see :func:`decode`."""
LARGER = 256 / 224
"""How much larger than the crop ``imagenet`` resizes, as torchvision's presets and most published networks do."""


def counted(kinds: Mapping[str, int]) -> str:
    """Numbers of files by ending, in words: ``3 .heic, 1 .txt``."""
    return ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())


def refuse_resize(resize: str) -> None:
    """Refuse an unknown way to resize.

    Raises:
        ConfigError: names those that there are.
    """
    if resize not in get_args(Resize):
        raise ConfigError(f"data.resize={resize}: expected one of {', '.join(get_args(Resize))}")


def decode(path: Path, *, size: Size, channels: int, resize: Resize = "crop") -> np.ndarray:
    """Read one image as uint8 (C,H,W).

    Args:
        path: of the image.
        size: height and width, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        resize: ``crop`` resizes the image until it covers ``size`` and takes the central part; ``imagenet`` does so
            with 256/224 of it, as torchvision's presets; ``stretch`` changes its shape; ``pad`` fits all of it in, on
            black.

    Raises:
        OSError, ValueError ...: the file is damaged, or its pixels are no 8- or 16-bit integers.
    """
    with opened(path) as image:
        return pixels_of(image, size=size, channels=channels, resize=resize)


def pixels_of(image: Image.Image, *, size: Size, channels: int, resize: Resize = "crop") -> np.ndarray:
    """The pixels of an open picture, uint8 (C,H,W); arguments as for :func:`decode`.

    Raises:
        OSError, ValueError ...: as for :func:`decode`.
    """
    upright = ImageOps.exif_transpose(image)  # as the camera was held
    shape, box = placed(upright.size, size, resize)
    picture = eight_bit(upright).convert("L" if channels == 1 else "RGB")
    if shape != picture.size:
        picture = picture.resize(shape, RESAMPLE)
    pixels = np.array(picture.crop(box))  # black where the box is larger
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def placed(found: tuple[int, int], size: Size, resize: Resize) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Width and height to resize an image to, and the box of the result that is used; see :func:`decode`.

    Args:
        found: width and height of the image.
        size: height and width that are wanted, or one number for both.
        resize: how.

    Raises:
        ValueError: the resized image would have too many pixels.
    """
    tall, wide = sides(size)
    if resize == "stretch":
        return (wide, tall), (0, 0, wide, tall)
    if resize == "pad":
        scale = min(wide / found[0], tall / found[1])
        shape = max(1, round(found[0] * scale)), max(1, round(found[1] * scale))
    else:
        larger = LARGER if resize == "imagenet" else 1
        shape, _ = covering(found, (round(tall * larger), round(wide * larger)))
    left, top = (shape[0] - wide) // 2, (shape[1] - tall) // 2
    return shape, (left, top, left + wide, top + tall)


def decode_whole(path: Path, *, size: Size, channels: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Read one image as :func:`decode` does, without cropping it; and its own height and width.

    Raises:
        OSError, ValueError ...: as for :func:`decode`.
    """
    with opened(path) as image:
        upright = ImageOps.exif_transpose(image)  # as the camera was held
        width, height = upright.size
        shape, _ = covering(upright.size, size)
        picture = eight_bit(upright).convert("L" if channels == 1 else "RGB")
    pixels = np.array(picture.resize(shape, RESAMPLE) if shape != picture.size else picture)
    pixels = pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return pixels, (height, width)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as the camera was held.

    Raises:
        OSError, ValueError: as for :func:`opened`.
    """
    with opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def covering(found: tuple[int, int], size: Size) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Width and height to resize an image to so that it covers ``size``, and the box to crop then.

    Args:
        found: width and height of the image.
        size: height and width of the part, or one number for both.

    Raises:
        ValueError: the resized image would have too many pixels.
    """
    width, height = found
    tall, wide = sides(size)
    scale = max(wide / width, tall / height)
    shape = (max(wide, round(width * scale)), max(tall, round(height * scale)))
    if shape[0] * shape[1] > MOST_PIXELS:
        raise ValueError(f"{width}x{height} would become {shape[0]}x{shape[1]}, at most {MOST_PIXELS:,} pixels")
    left, top = (shape[0] - wide) // 2, (shape[1] - tall) // 2
    return shape, (left, top, left + wide, top + tall)


def opened(path: Path) -> Image.Image:
    """Open an image file without reading pixels, to be closed; only formats that start no external program.

    Raises:
        OSError, ValueError: it is no regular file or image of these formats, or has too many pixels.
    """
    strangers.refuse_irregular(path)
    Image.init()
    image = Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    width, height = image.size
    if not 0 < width * height <= MOST_PIXELS:
        image.close()
        raise ValueError(f"{width}x{height} pixels, at most {MOST_PIXELS:,}")
    return image


def eight_bit(image: Image.Image) -> Image.Image:
    """An image with 8 bits for each channel.

    Raises:
        ValueError: its pixels are 32-bit numbers.
    """
    if image.mode.startswith("I;16"):  # convert() would clip, not scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels are 32-bit (mode {image.mode}), expected 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image
