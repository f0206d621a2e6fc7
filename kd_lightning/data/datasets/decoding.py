"""Decodes the image files of a set once, into one tensor or a file that is read as it is needed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from kd_lightning.core import strangers
from kd_lightning.core.mapped import free_memory, mapped
from kd_lightning.core.sides import Size, sides
from kd_lightning.data.datasets.image_files import Resize, decode, refuse_resize
from kd_lightning.errors import ConfigError, DataError
from kd_lightning.store.artifacts import Store, remedy
from kd_lightning.store.files import digest, file_digest, in_words, write_json

VERSION = 2  # raise when the same files would give different pixels
PIXELS = "pixels.uint8"
THREADS = min(8, os.cpu_count() or 1)


Cache = Literal["memory", "disk", "none"]
"""Where decoded images are: kept in the store and held in memory, read from the store as needed, or not kept."""
PIECE = 256
"""Images decoded at a time where they go to disk."""


def decoded(
    root: Path,
    files: Sequence[Path],
    *,
    size: Size,
    channels: int,
    store: Store | None,
    skip_bad: bool,
    resize: Resize = "crop",
    cache: Cache = "memory",
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Decode files, or read the stored result of an earlier decoding.

    Args:
        root: of the set.
        files: in the order of the images.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        store: keeps decoded images, or None.
        skip_bad: leave out files that cannot be decoded instead of raising.
        resize: see :func:`~kd_lightning.data.datasets.image_files.decode`.
        cache: where the images are, see ``Cache``; on disk only with a store.

    Returns:
        Images uint8 (M,C,H,W), their indices in ``files`` int64 (M,), and the errors of the other files.

    Raises:
        DataError: a file cannot be decoded, or the images do not fit into memory.
        ConfigError: an unknown ``resize`` or ``cache``.
    """
    refuse_resize(resize)
    if cache not in get_args(Cache):
        raise ConfigError(f"data.cache={cache}: expected one of {', '.join(get_args(Cache))}")
    shape = channels, *sides(size)
    if cache != "disk":
        _refuse_large(len(files), shape)
    read = partial(decode, size=size, channels=channels, resize=resize)
    images, good, bad = _kept(root, files, read, shape, resize, store if cache != "none" else None, cache == "disk")
    if bad and not skip_bad:
        path, reason = next(iter(bad.items()))
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DataError(
            f"cannot decode {root / path}: {reason}{others}. Replace it, or leave such files out with "
            "data.skip_bad=true"
        )
    return images, good, bad


def _refuse_large(count: int, shape: tuple[int, int, int]) -> None:
    """Refuse images that memory has no room for, twice: as read, and divided into parts."""
    needed, free = 2 * count * math.prod(shape), free_memory()
    if needed > free:
        raise DataError(
            f"{count:,} images of {'x'.join(map(str, shape))} (channels, height, width) need {in_words(needed)} of "
            f"memory while they are read, {in_words(free)} are free: data.cache=disk reads them from disk as they are "
            "needed; or choose a smaller data.size"
        )


Read = Callable[[Path], np.ndarray]


def _kept(
    root: Path,
    files: Sequence[Path],
    read: Read,
    shape: tuple[int, int, int],
    resize: Resize,
    store: Store | None,
    on_disk: bool,
) -> tuple[Tensor, Tensor, dict[str, str]]:
    paths = [os.path.relpath(file, root) for file in files]
    if store is None:
        return _decode(root, paths, read, shape)

    def build(folder: Path) -> None:
        if on_disk:
            good, bad = _write(root, paths, read, folder / PIXELS)
            save_file({"good": good}, folder / "images.safetensors")
        else:
            images, good, bad = _decode(root, paths, read, shape)
            save_file({"images": images, "good": good}, folder / "images.safetensors")
        write_json(folder / "bad.json", bad)

    with ThreadPoolExecutor() as threads:
        contents = list(threads.map(content_of, files))
    channels, *both = shape
    key: dict[str, Any] = {
        "files": digest(list(zip(paths, contents, strict=True))),
        "count": len(files),
        "size": both[0] if both[0] == both[1] else both,
        "channels": channels,
        "version": VERSION,
    }
    key |= {"resize": resize} if resize != "crop" else {}
    key |= {"form": "mapped"} if on_disk else {}
    folder = store.obtain("images", key, build)
    tensors = strangers.read_tensors(folder / "images.safetensors", advice=remedy(folder))
    good, bad = tensors["good"], strangers.read_json(folder / "bad.json", advice=remedy(folder))
    if not on_disk:
        return tensors["images"], good, bad
    with strangers.reading(folder / PIXELS, error=DataError, advice=remedy(folder)):
        return mapped(folder / PIXELS, (len(good), *shape)), good, bad


def content_of(file: Path) -> str:
    """Hash of the content; size and time do not identify it. Unreadable files are reported when decoded."""
    try:
        return file_digest(file) if file.is_file() else "no file"
    except OSError as error:
        return str(error)


def _decode(root: Path, paths: list[str], read: Read, shape: Sequence[int]) -> tuple[Tensor, Tensor, dict[str, str]]:
    images = torch.empty(len(paths), *shape, dtype=torch.uint8)
    bad: dict[str, str] = {}
    good: list[int] = []

    def one(i: int) -> str | None:
        try:
            images[i] = torch.from_numpy(read(root / paths[i]))
        except Exception as error:  # Pillow's plugins raise many kinds of errors on damaged files
            return strangers.in_a_line(error)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        reasons = pool.map(one, range(len(paths)))
        for i, reason in enumerate(tqdm(reasons, "decoding", len(paths), disable=len(paths) <= 2000)):
            if reason is None:
                good.append(i)
            else:
                bad[paths[i]] = reason
    return (images[good] if bad else images), torch.tensor(good, dtype=torch.int64), bad


def _write(root: Path, paths: list[str], read: Read, file: Path) -> tuple[Tensor, dict[str, str]]:
    """Write the pixels of one image after another to a file; memory holds a few hundred images."""
    bad: dict[str, str] = {}
    good: list[int] = []

    def one(path: str) -> np.ndarray | str:
        try:
            return read(root / path)
        except Exception as error:  # Pillow's plugins raise many kinds of errors on damaged files
            return strangers.in_a_line(error)

    bar = tqdm(total=len(paths), desc="decoding to disk", disable=len(paths) <= 2000)
    with ThreadPoolExecutor(THREADS) as pool, file.open("wb") as out, bar:
        for start in range(0, len(paths), PIECE):
            piece = paths[start : start + PIECE]
            for i, image in enumerate(pool.map(one, piece), start):
                if isinstance(image, str):
                    bad[paths[i]] = image
                else:
                    good.append(i)
                    out.write(image.tobytes())
            bar.update(len(piece))
    return torch.tensor(good, dtype=torch.int64), bad
