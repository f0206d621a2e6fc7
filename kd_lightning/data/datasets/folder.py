"""Images in one folder per class, decoded once into a single tensor."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from kd_lightning.core import strangers
from kd_lightning.core.sides import Size, sides
from kd_lightning.data.classes import class_names, classes_of, split_folders
from kd_lightning.data.dataset import Dataset, Split, hold_out
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store, digest, file_digest, remedy, write_json

VERSION = 2  # raise when the same files would give different pixels
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


@dataclass(frozen=True)
class File:
    """An image file of a class in one part of the set."""

    path: Path
    part: str
    label: int


def load(
    *,
    root: str | Path,
    name: str = "image_folder",
    size: Size,
    channels: int = 3,
    val: int | float = 0.1,
    store: Store | None = None,
    skip_bad: bool = False,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Load ``root/train/<class>/*`` and any ``val`` and ``test``, or only ``test``, or ``root/<class>/*``.

    Images are resized until they cover ``size`` and cropped to its central part. Folders inside a class
    folder belong to its class.

    Args:
        root: the folder.
        name: of the set, in messages and tables.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out if there is no ``val`` folder; 0 for none.
        store: keeps decoded images; None decodes at each call.
        skip_bad: leave out files that cannot be decoded, and count them.
        classes: the class names in the order of their labels, needed where folders hold only some of them.

    Raises:
        DataError: there is no class folder, one is empty or unknown, or a file cannot be decoded.
    """
    root = Path(root).expanduser()
    parts = split_folders(root)
    names = list(classes) if classes else classes_of(parts)
    unread: Counter[str] = Counter()
    files = [file for part, folder in parts.items() for file in _list(folder, part, names, unread)]
    paths = [file.path for file in files]
    images, good, bad = decoded(root, paths, size=size, channels=channels, store=store, skip_bad=skip_bad)
    kept = [files[i] for i in good.tolist()]
    for part, folder in parts.items():
        for label in {f.label for f in files if f.part == part} - {f.label for f in kept if f.part == part}:
            raise DataError(f"no image in the class folder {folder / names[label]} can be decoded")
    splits = {part: _split(images, kept, part) for part in parts}
    if "train" in splits and "val" not in splits and val:
        splits["train"], splits["val"] = hold_out(splits["train"], val)
    return Dataset(
        found=_told(splits, parts, root, names),
        unread=dict(sorted(unread.items())),
        name=name,
        classes=names,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        layout="folders",
        encoding="+".join(sorted({ENCODINGS[file.path.suffix.lower()] for file in kept})),
        skipped=len(bad),
    )


def _told(splits: dict[str, Split], parts: dict[str, Path], root: Path, names: list[str]) -> str:
    """What was found: the parts with their folders and counts, and the classes."""
    said = []
    for part in ("train", "val", "test"):
        if part in splits:
            place = "held out of training" if part not in parts else "" if parts[part] == root else parts[part].name
            aside = f" ({place})" if place not in ("", part) else ""
            said.append(f"{len(splits[part]):,} images for {part}{aside}")
    few = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
    return f"{root}: {', '.join(said)}; {len(names)} classes: {few}"


def _list(folder: Path, part: str, names: list[str], unread: Counter[str]) -> list[File]:
    found = class_names(folder)
    if unknown := [name for name in found if name not in names]:
        raise DataError(
            f"class folder {folder / unknown[0]} is none of the {len(names)} classes of the training folder "
            f"({', '.join(names[:5])}{' ...' if len(names) > 5 else ''}): rename it, remove it, or add the "
            "class to the training folder"
        )
    files = []
    for name in found:
        there = sorted(
            Path(base) / file
            for base, _, inside in os.walk(folder / name)
            for file in inside
            if not file.startswith(".")
        )
        paths = [path for path in there if path.suffix.lower() in ENCODINGS]
        others = Counter(path.suffix.lower() or path.name for path in there if path.suffix.lower() not in ENCODINGS)
        unread += others
        if not paths:
            held = f", but {counted(others)}" if others else ""
            raise DataError(
                f"class folder {folder / name} holds no image that can be read ({USUAL} ...){held}: convert or add "
                "some, or remove the folder"
            )
        label = names.index(name)
        files += [File(path, part, label) for path in paths]
    return files


def counted(kinds: Mapping[str, int]) -> str:
    """Numbers of files by ending, in words: ``3 .heic, 1 .txt``."""
    return ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())


def _split(images: Tensor, files: list[File], part: str) -> Split:
    rows = [i for i, file in enumerate(files) if file.part == part]
    labels = torch.tensor([files[i].label for i in rows])
    return Split(images[rows[0] : rows[-1] + 1], labels)  # the files of a part are contiguous


def decoded(
    root: Path, files: Sequence[Path], *, size: Size, channels: int, store: Store | None, skip_bad: bool
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Decode files, or read the stored result of an earlier decoding.

    Args:
        root: of the set.
        files: in the order of the images.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        store: keeps decoded images, or None.
        skip_bad: leave out files that cannot be decoded instead of raising.

    Returns:
        Images uint8 (M,C,H,W), their indices in ``files`` int64 (M,), and the errors of the other files.

    Raises:
        DataError: a file cannot be decoded.
    """
    images, good, bad = _kept(root, files, size=size, channels=channels, store=store)
    if bad and not skip_bad:
        path, reason = next(iter(bad.items()))
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DataError(
            f"cannot decode {root / path}: {reason}{others}. Replace it, or leave such files out with "
            "data.skip_bad=true"
        )
    return images, good, bad


def _kept(
    root: Path, files: Sequence[Path], *, size: Size, channels: int, store: Store | None
) -> tuple[Tensor, Tensor, dict[str, str]]:
    paths = [str(file.relative_to(root)) for file in files]
    if store is None:
        return _decode(root, paths, size, channels)

    def build(folder: Path) -> None:
        images, good, bad = _decode(root, paths, size, channels)
        save_file({"images": images, "good": good}, folder / "images.safetensors")
        write_json(folder / "bad.json", bad)

    with ThreadPoolExecutor() as threads:
        contents = list(threads.map(content_of, files))
    key = {
        "files": digest(list(zip(paths, contents, strict=True))),
        "count": len(files),
        "size": size if isinstance(size, int) else list(size),
        "channels": channels,
        "version": VERSION,
    }
    folder = store.obtain("images", key, build)
    tensors = strangers.read_tensors(folder / "images.safetensors", advice=remedy(folder))
    return tensors["images"], tensors["good"], strangers.read_json(folder / "bad.json", advice=remedy(folder))


def content_of(file: Path) -> str:
    """Hash of the content; size and time do not identify it. Unreadable files are reported when decoded."""
    try:
        return file_digest(file) if file.is_file() else "no file"
    except OSError as error:
        return str(error)


def _decode(root: Path, paths: list[str], size: Size, channels: int) -> tuple[Tensor, Tensor, dict[str, str]]:
    images = torch.empty(len(paths), channels, *sides(size), dtype=torch.uint8)
    bad: dict[str, str] = {}
    good: list[int] = []

    def one(i: int) -> str | None:
        try:
            images[i] = torch.from_numpy(decode(root / paths[i], size=size, channels=channels))
        except Exception as error:  # Pillow's plugins raise many kinds of errors on damaged files
            return strangers.in_a_line(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(one, range(len(paths)))
        for i, reason in enumerate(tqdm(reasons, "decoding", len(paths), disable=len(paths) <= 2000)):
            if reason is None:
                good.append(i)
            else:
                bad[paths[i]] = reason
    return (images[good] if bad else images), torch.tensor(good, dtype=torch.int64), bad


def decode(path: Path, *, size: Size, channels: int) -> np.ndarray:
    """Read one image as uint8 (C,H,W): resized until it covers ``size``, then the central part of that size.

    Args:
        path: of the image.
        size: height and width, or one number for both: then the shorter side is resized to it.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        OSError, ValueError ...: the file is damaged, or its pixels are no 8- or 16-bit integers.
    """
    with opened(path) as image:
        upright = ImageOps.exif_transpose(image)  # as the camera was held
        shape, box = covering(upright.size, size)
        picture = eight_bit(upright).convert("L" if channels == 1 else "RGB")
    if shape != picture.size:
        picture = picture.resize(shape, RESAMPLE)
    pixels = np.array(picture.crop(box))
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


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
