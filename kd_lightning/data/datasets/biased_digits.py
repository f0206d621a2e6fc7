"""Digits whose colours or textures tell the label in training and nothing in the test.

The three biased sets of Sauer and Geiger, "Counterfactual Generative Networks" (ICLR 2021): a classifier that has
learnt the colours instead of the shapes answers at random in the test. Where both colours of ``double_colored`` are
the same, in a tenth of the test, hardly anything but the jitter shows the digit: nobody reaches 100 % there.

Deviations (paper's code / here):

- ``colored`` is a file of Kim et al. (CVPR 2019), never released with what made it / made here, with ten colours of
  our own as far apart as ten can be easily named; the jitter's variance of 0.02 is theirs.
- the jitter of ``double_colored`` is added to the palette itself and never taken back, so that the colours of a
  worker wander further the longer an epoch lasts / drawn anew for each image, as the palette is meant.
- jittered colours are unclipped floats / of 8 bits, so that a channel at 0 or 1 is jittered to one side alone.
- ``wildlife`` takes twenty photographs, licensed for research alone / textures drawn by :mod:`textures`, or a folder.
- jitter, crops and the colours of the test are drawn at every access, of the test until it is written to a file / once.
- the test of ``double_colored`` and ``wildlife`` is the last 10,000 of MNIST's training file / MNIST's test file;
  ``own_test=False`` takes it from the training file, too, but at random places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import ImageColor
from torch import Tensor

from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.datasets.pools import pools, shares
from kd_lightning.data.datasets.textures import drawn_textures, read_textures
from kd_lightning.errors import DataError

CHUNK = 2048
KINDS = ("colored", "double_colored", "wildlife", "binary")
SINGLE = ("#e61a1a", "#1ab31a", "#2626f2", "#f2e61a", "#e61ae6", "#1ae6e6", "#f2f2f2", "#f2801a", "#660d99", "#808080")
"""Of the digits 0 to 9 in ``colored``: red, green, blue, yellow, magenta, cyan, white, orange, purple and grey."""

BEHIND = (
    "darkgreen", "darkblue", "#b03060", "orangered", "yellow", "burlywood", "lime", "aqua", "fuchsia", "#6495ed",
)  # fmt: skip
"""Behind the digits 0 to 9 in ``double_colored``; the digit itself has the colour of the one four further on."""

OBJECT = tuple(BEHIND[i - 6] for i in range(10))
BLACK, WHITE = ("black",) * 10, ("white",) * 10
PADDING = 3


def load(
    *,
    kind: Literal["colored", "double_colored", "wildlife", "binary"],
    base: Literal["digits", "mnist"] = "mnist",
    root: str | Path = "data",
    size: int = 32,
    train: int | None = 50000,
    val: int = 5000,
    test: int | None = None,
    own_test: bool = True,
    unbiased: bool = False,
    textures: str | Path | None = None,
    seed: int = 0,
    download: bool = False,
) -> Dataset:
    """Split digits, and give each a colour or texture, and what is behind it another.

    In ``train`` and ``val`` those are the label's, in ``test`` each is one of ten at random. Seed, base and the digit
    itself determine what it is given; more training images are a superset of fewer, and leave ``val`` and ``test`` of
    MNIST as they are.

    Args:
        kind: ``colored``, grey digits times a colour before black; ``double_colored``, colour before colour; or
            ``wildlife``, texture before texture, each a crop that is chosen once; or ``binary``, white before black,
            in which nothing but the shape tells.
        base: scikit-learn's 1,797 digits (their pixels made finer bicubically), or MNIST.
        root: of MNIST's files.
        size: side in pixels.
        train: training images; None for all that val leaves and, where the test is of the same digits, the test too.
        val: validation images; 0 for none. They are no part of ``train``.
        test: test images, None for all there are: MNIST's own, or what the other parts leave.
        own_test: take the test from MNIST's test file.
        unbiased: draw ``train`` and ``val`` as the test: what a classifier could reach.
        textures: of ``wildlife``, a folder as in :func:`textures.read_textures`; None for drawn ones.
        seed: of the choice of digits and of what they are given.
        download: let torchvision fetch MNIST.

    Raises:
        DataError: fewer digits than wanted, an unknown base or kind, MNIST cannot be read, or the textures are not
            ten and ten.
    """
    if kind not in KINDS:
        raise DataError(f"data.load.kind={kind}: expected one of {', '.join(KINDS)}")
    if textures is not None and kind != "wildlife":
        raise DataError(f"data.textures={textures}: {kind} has none; take data=wildlife_mnist")
    found, layout = pools(base, root, download, instead="data.base=digits data.train=1000 data.val=300")
    found = found if own_test else found[:1]
    if train is None:
        train = len(found[0]) - val - (0 if len(found) > 1 else len(found[0]) // 5 if test is None else test)
    generators = [torch.Generator().manual_seed(2 * seed + number) for number in range(len(found))]
    name = f"{kind}_{base}"
    places = shares(name, base, found, {"val": val, "train": train}, test, generators)
    draws = [Draws(len(pool), generator) for pool, generator in zip(found, generators, strict=True)]
    pictures = _textures(textures, size) if kind == "wildlife" else None
    parts: dict[str, Split | None] = {}
    for part, (number, chosen) in places.items():
        pool, draw = found[number], draws[number]
        labels = pool.labels[chosen]
        free = unbiased or part == "test"
        which = draw.which[chosen] if free else labels[:, None].expand(-1, 2)
        chunks = zip(
            *(v.split(CHUNK) for v in (pool.images[chosen], which, draw.jitter[chosen], draw.corner[chosen])),
            strict=True,
        )
        made = [_painted(kind, pictures, size, *chunk) for chunk in chunks]
        parts[part] = Split(torch.cat(made), labels) if made and len(labels) else None
    classes = [str(digit) for digit in range(10)]
    return Dataset(name, classes, parts["train"], parts["val"], parts["test"], layout, "raw")


class Draws:
    """What chance gives ``n`` digits: of each the digit's own first, then what is behind it.

    ``which`` int64 (n,2) in 0 to 9, ``jitter`` (n,2,3) ~ N(0,1) and ``corner`` (n,2,2) ~ U[0,1).
    """

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.which = torch.randint(10, (n, 2), generator=generator)
        self.jitter = torch.randn(n, 2, 3, generator=generator)
        self.corner = torch.rand(n, 2, 2, generator=generator)


def glyphs(images: Tensor, *, size: int, binary: bool) -> Tensor:
    """Digits in [0,1] of (N,1,size,size): nearest pixels of MNIST's, bicubic ones of those of 8x8.

    Args:
        images: uint8 (N,1,H,W).
        size: side in pixels.
        binary: ones and zeros alone: above 0.1, or above 0.35 of those of 8x8, which bicubic pixels surround by grey.
    """
    small = images.shape[-1] == 8
    x = images.float() / 255
    x = F.interpolate(x, (size, size), mode="bicubic").clamp(0, 1) if small else F.interpolate(x, (size, size))
    return (x > (0.35 if small else 0.1)).float() if binary else x


def _painted(
    kind: str, pictures: Tensor | None, size: int, images: Tensor, which: Tensor, jitter: Tensor, corner: Tensor
) -> Tensor:
    """Uint8 (N,3,size,size)."""
    if pictures is not None:
        own, rest = (crops(pictures[i], which[:, i], corner[:, i], size) for i in (0, 1))
        return torch.where(glyphs(images, size=size, binary=True) > 0, own, rest)
    names, deviations = {
        "colored": ((SINGLE, BLACK), (0.02**0.5, 0.0)),
        "double_colored": ((OBJECT, BEHIND), (0.01, 0.01)),
        "binary": ((WHITE, BLACK), (0.0, 0.0)),
    }[kind]
    std = torch.tensor(deviations)
    means = torch.stack([palette(n)[which[:, i]] for i, n in enumerate(names)], 1)
    colour, behind = (means + std[:, None] * jitter).clamp(0, 1)[..., None, None].unbind(1)
    shape = glyphs(images, size=size, binary=kind != "colored")
    return (255 * (shape * colour + (1 - shape) * behind)).round().to(torch.uint8)


def palette(names: tuple[str, ...]) -> Tensor:
    """RGB in [0,1] of (len(names),3) of colours by their CSS names."""
    return torch.tensor([ImageColor.getrgb(name) for name in names]) / 255


def crops(pictures: Tensor, which: Tensor, corner: Tensor, size: int) -> Tensor:
    """One crop each, uint8 (N,3,size,size), of textures continued by ``PADDING`` reflected pixels.

    Args:
        pictures: textures uint8 (K,3,H,W).
        which: of them, int64 (N,).
        corner: where, (N,2) in [0,1) of all possible rows and columns.
        size: side of a crop.
    """
    wide = F.pad(pictures.float(), (PADDING,) * 4, mode="reflect").to(torch.uint8)
    last = torch.tensor(wide.shape[-2:]) - size
    top, left = (corner * (last + 1)).long().unbind(1)
    steps = torch.arange(size)
    rows, columns = (top[:, None] + steps)[:, :, None], (left[:, None] + steps)[:, None, :]
    return wide[which[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def _textures(folder: str | Path | None, size: int) -> Tensor:
    """Uint8 (2,10,3,H,W): of the digits, and behind them."""
    return drawn_textures() if folder is None else read_textures(Path(folder).expanduser(), at_least=size)
