"""Digits whose colours or textures determine the label in training and are random in the test.

The three biased sets of Sauer and Geiger, "Counterfactual Generative Networks" (ICLR 2021): a classifier that has
learnt colours instead of shapes is at chance level in the test. In a tenth of the test of ``double_colored``, digit and
background have the same colour and differ in little but the jitter, so that 100 % is out of reach.

Deviations (paper's code / here):

- ``colored`` is a file of Kim et al. (CVPR 2019), whose code was never released / made here, with ten clearly
  different colours of our own; the jitter's variance of 0.02 is theirs.
- the jitter of ``double_colored`` is added to the palette in place and accumulates, so that a worker's colours drift
  during an epoch / drawn independently for each image.
- jittered colours are unclipped floats / 8 bits, so that a channel at 0 or 1 is jittered to one side only.
- ``wildlife`` uses twenty photographs, licensed for research only / textures drawn by :mod:`textures`, or a folder.
- jitter, crops and the test's colours are drawn at every access, for the test until it is written to a file / once.
- the test of ``double_colored`` and ``wildlife`` is the last 10,000 of MNIST's training file / MNIST's test file;
  ``own_test=False`` takes it from the training file too, but at random places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import ImageColor
from torch import Tensor

from kd_lightning.core.sides import one_side
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.datasets.pools import pools, shares
from kd_lightning.data.datasets.textures import drawn_textures, read_textures
from kd_lightning.errors import DataError

CHUNK = 2048
KINDS = ("colored", "double_colored", "wildlife", "binary")
SINGLE = ("#e61a1a", "#1ab31a", "#2626f2", "#f2e61a", "#e61ae6", "#1ae6e6", "#f2f2f2", "#f2801a", "#660d99", "#808080")
"""Colours of the digits 0 to 9 in ``colored``: red, green, blue, yellow, magenta, cyan, white, orange, purple, grey."""

BEHIND = (
    "darkgreen", "darkblue", "#b03060", "orangered", "yellow", "burlywood", "lime", "aqua", "fuchsia", "#6495ed",
)  # fmt: skip
"""Background colours of the digits 0 to 9 in ``double_colored``; the digit has the colour four places further on."""

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
    """Load digits, split them, and give digit and background a colour or texture each.

    In ``train`` and ``val`` they are the label's, in ``test`` each is one of ten at random. They depend only on seed,
    base and the digit itself. A larger ``train`` is a superset of a smaller one and, with MNIST's own test, does not
    change ``val`` and ``test``.

    Args:
        kind: ``colored``, grey digits times a colour on black; ``double_colored``, one colour on another;
            ``wildlife``, one texture on another, each a crop chosen once; or ``binary``, white on black, where only
            the shape shows the label.
        base: scikit-learn's 1,797 digits (enlarged bicubically), or MNIST.
        root: of MNIST's files.
        size: side in pixels.
        train: number of training images; None for all that are in no other part.
        val: number of validation images, none of them in ``train``; 0 for none.
        test: number of test images; None for all: MNIST's own, or those in no other part.
        own_test: take the test from MNIST's test file.
        unbiased: draw ``train`` and ``val`` as the test, for an upper bound of the accuracy.
        textures: for ``wildlife``, a folder as in :func:`textures.read_textures`; None for drawn ones.
        seed: of the choice of digits and of their colours or textures.
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
    size = one_side(size, of=f"data={name}")
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
    """Random values of ``n`` digits: on axis 1, first of the digit itself, then of its background.

    ``which`` int64 (n,2) in 0 to 9, ``jitter`` (n,2,3) ~ N(0,1) and ``corner`` (n,2,2) ~ U[0,1).
    """

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.which = torch.randint(10, (n, 2), generator=generator)
        self.jitter = torch.randn(n, 2, 3, generator=generator)
        self.corner = torch.rand(n, 2, 2, generator=generator)


def glyphs(images: Tensor, *, size: int, binary: bool) -> Tensor:
    """Digits in [0,1], (N,1,size,size): MNIST's resized to the nearest pixel, those of 8x8 bicubically.

    Args:
        images: uint8 (N,1,H,W).
        size: side in pixels.
        binary: threshold to ones and zeros: at 0.1, or for 8x8 at 0.35, because bicubic resizing adds grey edges.
    """
    small = images.shape[-1] == 8
    x = images.float() / 255
    x = F.interpolate(x, (size, size), mode="bicubic").clamp(0, 1) if small else F.interpolate(x, (size, size))
    return (x > (0.35 if small else 0.1)).float() if binary else x


def _painted(
    kind: str, pictures: Tensor | None, size: int, images: Tensor, which: Tensor, jitter: Tensor, corner: Tensor
) -> Tensor:
    """Coloured or textured digits, uint8 (N,3,size,size)."""
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
    """RGB in [0,1], (len(names),3), of colours by CSS name or hex code."""
    return torch.tensor([ImageColor.getrgb(name) for name in names]) / 255


def crops(pictures: Tensor, which: Tensor, corner: Tensor, size: int) -> Tensor:
    """One crop per image, uint8 (N,3,size,size), of textures padded by ``PADDING`` reflected pixels.

    Args:
        pictures: textures uint8 (K,3,H,W).
        which: index of the texture, int64 (N,).
        corner: position of the crop, (N,2), in [0,1) of the possible rows and columns.
        size: side of a crop.
    """
    wide = F.pad(pictures.float(), (PADDING,) * 4, mode="reflect").to(torch.uint8)
    last = torch.tensor(wide.shape[-2:]) - size
    top, left = (corner * (last + 1)).long().unbind(1)
    steps = torch.arange(size)
    rows, columns = (top[:, None] + steps)[:, :, None], (left[:, None] + steps)[:, None, :]
    return wide[which[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def _textures(folder: str | Path | None, size: int) -> Tensor:
    """Textures of digits and of backgrounds, uint8 (2,10,3,H,W)."""
    return drawn_textures() if folder is None else read_textures(Path(folder).expanduser(), at_least=size)
