"""Digits as a domain: plain, rotated by one angle, or blended with colour pictures (MNIST-M).

MNIST-M is that of Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation" (ICML 2015): each digit is
the absolute difference of itself and a random crop of a colour picture, per channel. It is made here.

Deviations (paper / here):

- the pictures are those of BSDS500 / those of a folder, or drawn textures where there is none.
- training and test digits are blended with crops of the same pictures / of every second picture each.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.core.sides import Size, sides
from kd_lightning.data.dataset import Dataset, Split, fit_to
from kd_lightning.data.datasets.biased_digits import crops
from kd_lightning.data.datasets.decoding import decoded
from kd_lightning.data.datasets.image_files import ENCODINGS
from kd_lightning.data.datasets.pools import pools
from kd_lightning.data.datasets.rotated_digits import turned
from kd_lightning.data.datasets.textures import drawn_textures
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

SIDE = 180
"""Pixels to which a picture's central square is resized."""


def load(
    *,
    base: str = "digits",
    root: str | Path = "data",
    size: Size = 8,
    channels: int = 1,
    first: int = 900,
    count: int = 600,
    val: int = 0,
    test: int | None = 297,
    degrees: float = 30.0,
    ground: str | Path | None = None,
    blend: bool = False,
    seed: int = 0,
    download: bool = False,
    store: Store | None = None,
) -> Dataset:
    """Load digits and change them; labels take no part in which digits are chosen.

    All digits for training are put in one random order that depends on base and seed: two domains of disjoint places
    in it share no digit.

    Args:
        base: scikit-learn's 1,797 digits, whose test is the last of the order; or MNIST, with its own test images.
        root: of MNIST's files.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        first: place of the first training image.
        count: number of training images.
        val: number of validation images, which come after them.
        test: number of test images; None for all, with MNIST only.
        degrees: counter-clockwise, by which every digit is rotated.
        ground: a folder of colour pictures at any depth, with which digits are blended; None for drawn textures.
        blend: whether digits are blended.
        seed: of the order, and of the crops.
        download: let torchvision fetch MNIST.
        store: keeps the decoded pictures.

    Raises:
        DataError: fewer digits than wanted, an unknown base, MNIST cannot be read, blended digits that are grey, or no
            picture.
    """
    found, layout = pools(base, root, download, instead="data.base=digits data.size=8")
    generators = [torch.Generator().manual_seed(2 * seed + number) for number in range(len(found))]
    orders = [torch.randperm(len(pool), generator=g) for pool, g in zip(found, generators, strict=True)]
    tests = orders[-1]
    if test is None and len(found) == 1:
        raise DataError("data.test=null: the digits of scikit-learn have no test images of their own, give a number")
    held = len(tests) if test is None else test
    room = len(orders[0]) - (held if len(found) == 1 else 0)
    if first + count + val > room or held > len(tests):
        raise DataError(
            f"digit_domain: digits {first} to {first + count + val} for training and validation and {held} for the "
            f"test, but {base} has {room} and {len(tests)} for them: choose fewer"
        )
    places = {
        "train": (0, orders[0][first : first + count]),
        "val": (0, orders[0][first + count : first + count + val]),
        "test": (len(found) - 1, tests[len(tests) - held :]),
    }
    grounds = _pictures(ground, store, size, channels) if blend else None
    parts: dict[str, Split | None] = dict.fromkeys(places)
    for part, (pool, chosen) in places.items():
        if len(chosen) == 0:
            continue
        images = found[pool].images[chosen]
        if degrees:
            finer = fit_to(images, size=[max(side, images.shape[-1]) for side in sides(size)], channels=1)
            images = turned(finer, torch.full((len(chosen),), degrees))
        images = fit_to(images, size=size, channels=channels)
        if grounds is not None:
            images = blended(images, grounds[part == "test" :: 2], chosen, seed)
        parts[part] = Split(images, found[pool].labels[chosen])
    name = f"{base}{f' at {degrees:g} degrees' if degrees else ''}{' on pictures' if blend else ''}"
    classes = [str(digit) for digit in range(10)]
    return Dataset(name, classes, parts["train"], parts["val"], parts["test"], layout, "raw")


def blended(images: Tensor, pictures: Tensor, places: Tensor, seed: int) -> Tensor:
    """|digit - crop| per channel, uint8 (N,3,H,H).

    Args:
        images: digits, uint8 (N,3,H,H).
        pictures: uint8 (K,3,S,S), S at least H.
        places: of the digits in their base, int64 (N,): the crop depends on the place and the seed only.
        seed: of the crops.
    """
    most = int(places.max()) + 1 if len(places) else 0
    draw = torch.rand(most, 3, generator=torch.Generator().manual_seed(seed))[places]  # row by row
    which, corner = (draw[:, 0] * len(pictures)).long(), draw[:, 1:]
    ground = torch.cat(
        [crops(pictures, w, c, images.shape[-1]) for w, c in zip(which.split(2048), corner.split(2048), strict=True)]
    )
    return (images.int() - ground.int()).abs().to(torch.uint8)


def _pictures(ground: str | Path | None, store: Store | None, size: Size, channels: int) -> Tensor:
    """Colour pictures, uint8 (K,3,S,S)."""
    if channels != 3:
        raise DataError(f"digit_domain: blended digits are in colour, set data.channels=3 (got {channels})")
    if ground is None:
        return drawn_textures().flatten(0, 1)
    folder = Path(ground).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENCODINGS)
    if len(files) < 2:
        raise DataError(
            f"digit_domain: {folder} holds {len(files)} pictures, at least 2 are needed. Name a folder of pictures, or "
            "blend digits with drawn textures by data.ground=null or source.target.ground=null"
        )
    return decoded(folder, files, size=max(SIDE, *sides(size)), channels=3, store=store, skip_bad=False)[0]
