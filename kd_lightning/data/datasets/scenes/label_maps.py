"""Images with label maps: files are paired, maps are read as classes, both are resized together.

Every data set of segmentation is a list of pairs of files and a :class:`Classes`; :func:`build` does the rest.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from kd_lightning.core import strangers
from kd_lightning.core.segmentation import VOID, Segmentation
from kd_lightning.core.sides import sides
from kd_lightning.data.dataset import Dataset, Split, hold_out
from kd_lightning.data.datasets.decoding import content_of
from kd_lightning.data.datasets.image_files import ENCODINGS, covering, decode, opened, upright_size
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store, remedy
from kd_lightning.store.files import digest

VERSION = 1  # raise when the same files would give different pixels
ADVICE = "correct the file, or leave it out"
INDEXED = ("P", "L", "1", "I;16")
"""Modes of images whose pixels are numbers, and not colours."""


@dataclass(frozen=True)
class Pair:
    """The files of an image and of its label map."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Classes:
    """What the pixels of a label map mean.

    Args:
        names: of the classes.
        numbers: pixel value -> class or ``VOID``, of maps whose pixels are numbers.
        colours: (red, green, blue) -> class or ``VOID``, of maps whose pixels are colours; None if there is no palette.
            With one, PNGs with a palette of their own count as coloured: their numbers have any order.
        described: where the meaning comes from, for messages.
    """

    names: Sequence[str]
    numbers: Mapping[int, int]
    colours: Mapping[tuple[int, int, int], int] | None = None
    described: str = "the classes"


def build(
    name: str,
    parts: Mapping[str, Sequence[Pair]],
    classes: Classes,
    *,
    task: Segmentation,
    size: int | Sequence[int],
    channels: int = 3,
    val: int | float = 0,
    root: Path,
    store: Store | None = None,
) -> Dataset:
    """Read all pairs into a data set.

    Args:
        name: of the set.
        parts: the pairs of ``train``, ``val`` and ``test``, as far as they exist.
        classes: what the label maps mean.
        task: has the number of classes and the label of void pixels.
        size: height and width, or one number for both. Images are resized until they cover it, their central part is
            used; label maps the same, by the nearest pixel.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out where there is no ``val``; 0 for none.
        root: folder of the files, to name them by.
        store: keeps what was decoded; None decodes at each call.

    Raises:
        DataError: a file cannot be decoded, a map is not as large as its image, or has a value that means nothing; the
            file is named.
    """
    if task.num_classes != len(classes.names):
        raise DataError(
            f"{name} has {len(classes.names)} classes, not {task.num_classes}: "
            f"set data.num_classes={len(classes.names)}"
        )
    splits: dict[str, Split] = {}
    for part, pairs in parts.items():
        if pairs:
            images, labels = _read(pairs, classes, size, channels, root, store)
            splits[part] = Split(images, labels.masked_fill_(labels == VOID, task.void))
    if not splits:
        raise DataError(f"{name}: no image with a label map under {root}")
    if "train" in splits and "val" not in splits and val:
        splits["train"], splits["val"] = hold_out(splits["train"], val)
    dataset = Dataset(
        name=name,
        classes=list(classes.names),
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        layout="folders",
        encoding="+".join(sorted({ENCODINGS[p.image.suffix.lower()] for pairs in parts.values() for p in pairs})),
        task=task,
    )
    _warn_of_absent(dataset)
    return dataset


def _warn_of_absent(dataset: Dataset) -> None:
    """Warn of classes without a pixel: nothing can be learned of them, and their IoU is empty."""
    for part in ("train", "test"):
        if (split := getattr(dataset, part)) is None:
            continue
        counts = torch.stack([torch.bincount(m.flatten().long(), minlength=256) for m in split.labels]).sum(0)
        absent = [name for name, count in zip(dataset.classes, counts.tolist(), strict=False) if not count]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            warnings.warn(
                f"{dataset.name}/{part}: no pixel of {', '.join(absent[:5])}{more}, of which nothing is learned or "
                "measured: add images that show it, or give the classes without it",
                stacklevel=3,
            )


def _read(
    pairs: Sequence[Pair], classes: Classes, size: int | Sequence[int], channels: int, root: Path, store: Store | None
) -> tuple[Tensor, Tensor]:
    if store is None:
        return _decode(pairs, classes, size, channels)

    def keep(folder: Path) -> None:
        images, labels = _decode(pairs, classes, size, channels)
        save_file({"images": images, "labels": labels}, folder / "maps.safetensors")

    with ThreadPoolExecutor() as threads:
        contents = list(threads.map(lambda p: [content_of(p.image), content_of(p.mask)], pairs))
    key = {
        "files": digest([[str(p.image.relative_to(root)), str(p.mask.relative_to(root))] for p in pairs]),
        "contents": digest(contents),
        "meaning": digest([list(classes.names), _plain(classes.numbers), _plain(classes.colours or {})]),
        "count": len(pairs),
        "size": list(sides(size)),
        "channels": channels,
        "version": VERSION,
    }
    folder = store.obtain("images", key, keep)
    tensors = strangers.read_tensors(folder / "maps.safetensors", advice=remedy(folder))
    return tensors["images"], tensors["labels"]


def _plain(table: Mapping) -> list:
    return sorted([list(key) if isinstance(key, tuple) else key, value] for key, value in table.items())


def _decode(pairs: Sequence[Pair], classes: Classes, size: int | Sequence[int], channels: int) -> tuple[Tensor, Tensor]:
    height, width = sides(size)
    images = torch.empty(len(pairs), channels, height, width, dtype=torch.uint8)
    labels = torch.empty(len(pairs), height, width, dtype=torch.uint8)

    def one(i: int) -> None:
        pair = pairs[i]
        with strangers.reading(pair.image, error=DataError, advice=ADVICE):
            images[i] = torch.from_numpy(decode(pair.image, size=size, channels=channels))
            wanted = upright_size(pair.image)
        with strangers.reading(pair.mask, error=DataError, advice=ADVICE):
            labels[i] = torch.from_numpy(read_mask(pair.mask, classes, of=wanted, size=size))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(one, range(len(pairs))))
    return images, labels


def read_mask(path: Path, classes: Classes, *, of: tuple[int, int], size: int | Sequence[int]) -> np.ndarray:
    """Read a label map as classes and ``VOID``, uint8 (H,W), resized and cropped like its image.

    Args:
        path: of the map.
        classes: what its pixels mean.
        of: width and height of its image, which must be the map's.
        size: height and width of the result, or one number for both.

    Raises:
        OSError, ValueError ...: it is damaged, of another size, its colours have no palette, or a value means nothing.
    """
    with opened(path) as file:
        if file.size != of:
            raise ValueError(f"the label map has {_by(file.size)} pixels, its image {_by(of)}")
        if file.mode in INDEXED and (classes.colours is None or file.mode != "P"):
            values = np.asarray(file).astype(np.int64)
            found = _looked_up(values, classes.numbers, classes)
        else:
            if classes.colours is None:
                raise ValueError(
                    f"its pixels are colours ({file.mode}), and there is no palette: give data.names=FILE with a line "
                    "'RED GREEN BLUE NAME' for each class"
                )
            channels = np.asarray(file.convert("RGB")).astype(np.int64)
            packed = (channels[..., 0] << 16) + (channels[..., 1] << 8) + channels[..., 2]
            table = {(r << 16) + (g << 8) + b: label for (r, g, b), label in classes.colours.items()}
            found = _looked_up(packed, table, classes)
    shape, box = covering(of, size)
    picture = Image.fromarray(found)
    if shape != picture.size:
        picture = picture.resize(shape, Image.Resampling.NEAREST)
    return np.array(picture.crop(box))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _looked_up(values: np.ndarray, table: Mapping[int, int], classes: Classes) -> np.ndarray:
    """Classes of pixel values, uint8 of their shape."""
    there, inverse = np.unique(values, return_inverse=True)
    if unknown := [value for value in there.tolist() if value not in table]:
        value, colours = unknown[0], classes.colours is not None and table is not classes.numbers
        said = f"colour {[value >> 16, value >> 8 & 255, value & 255]}" if colours else f"value {value}"
        count = int((values == value).sum())
        raise ValueError(
            f"the {said} on {count} pixel{'s' if count > 1 else ''} is no class of {classes.described} "
            f"({len(classes.names)} classes)"
        )
    return np.array([table[value] for value in there.tolist()], dtype=np.uint8)[inverse].reshape(values.shape)


def numbered(names: Sequence[str], *, first: int = 0, void: Sequence[int] = (VOID,)) -> dict[int, int]:
    """The table of maps that number their classes from ``first`` in order, with ``void`` values."""
    return {first + i: i for i in range(len(names))} | dict.fromkeys(void, VOID)


def inside(root: Path, homes: Sequence[str], wanted: str, name: str) -> Path:
    """The first folder of ``homes`` below ``root`` that holds the folder ``wanted``.

    Raises:
        DataError: none does.
    """
    for home in homes:
        if (root / home / wanted).is_dir():
            return root / home
    raise DataError(
        f"{name} is not under {root}: expected the folder {root / homes[0] / wanted}. Put its files there, or say "
        "where they are with data.root=DIR"
    )


def paired(images: Path, masks: Path) -> list[Pair]:
    """Pairs of the images and the maps of the same name, without its ending, in two folders, sorted by name.

    Args:
        images: folder of the images.
        masks: folder of the label maps.

    Raises:
        DataError: a folder does not exist or is empty, or a file has no partner or two.
    """
    listed = {kind: _listed(folder) for kind, folder in {"image": images, "label map": masks}.items()}
    for kind, other, where in (("image", "label map", masks), ("label map", "image", images)):
        if alone := sorted(set(listed[kind]) - set(listed[other])):
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise DataError(
                f"{listed[kind][alone[0]]}{more} has no {other} {where / alone[0]}.*: add it, or remove the {kind}"
            )
    return [Pair(listed["image"][stem], listed["label map"][stem]) for stem in sorted(listed["image"])]


def _listed(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in ENCODINGS or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(f"{path} and {found[path.stem].name} have one name: leave one of them out")
        found[path.stem] = path
    if not found:
        raise DataError(f"no image in {folder} ({', '.join(ENCODINGS)})")
    return found
