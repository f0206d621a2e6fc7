"""Public data sets in torchvision's layout on disk, or as class folders of the same images."""

from __future__ import annotations

import bz2
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from kd_lightning.core.sides import Size
from kd_lightning.core.strangers import in_a_line
from kd_lightning.data.classes import class_names, split_folders
from kd_lightning.data.dataset import Dataset, Split, fit_to, hold_out
from kd_lightning.data.datasets import folder
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

SILENCE = 60.0
"""Seconds without data from a server after which a download fails."""
MOST_UNPACKED = 1 << 28
"""Most bytes that a compressed file may unpack to."""
DIGITS = [str(digit) for digit in range(10)]
IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]


@dataclass(frozen=True)
class Public:
    """How torchvision stores a data set.

    ``open(root, train, download)`` returns its dataset object; ``inside`` holds ``files``, in one of ``homes``
    below the root; ``classes`` are the class names, None where only the files have them.
    """

    open: Callable[[str, bool, bool], Any]
    inside: str
    files: Sequence[str]
    classes: list[str] | None = None
    homes: Sequence[str] = ("",)
    count: int = 10


PUBLIC = {
    "mnist": Public(lambda r, t, d: datasets.MNIST(r, t, download=d), "MNIST/raw", IDX, DIGITS),
    "fashion_mnist": Public(
        lambda r, t, d: datasets.FashionMNIST(r, t, download=d),
        "FashionMNIST/raw",
        IDX,
        list(datasets.FashionMNIST.classes),
    ),
    "usps": Public(
        lambda r, t, d: datasets.USPS(r, t, download=d), "", ["usps.bz2", "usps.t.bz2"], DIGITS, ("", "usps")
    ),
    "cifar10": Public(lambda r, t, d: datasets.CIFAR10(r, t, download=d), "cifar-10-batches-py", BATCHES),
    "cifar100": Public(
        lambda r, t, d: datasets.CIFAR100(r, t, download=d),
        "cifar-100-python",
        ["train", "test", "meta"],
        count=100,
    ),
    "svhn": Public(
        lambda r, t, d: datasets.SVHN(r, "train" if t else "test", download=d),
        "",
        ["train_32x32.mat", "test_32x32.mat"],
        DIGITS,
        ("", "svhn"),
    ),
}


def load(
    *,
    name: str,
    root: str | Path,
    size: Size,
    channels: int,
    val: int | float = 5000,
    train: int | None = None,
    download: bool = False,
    store: Store | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Load a public set: torchvision's files under ``root``, else ``root/<name>/{train,test}/<class>/*``.

    Args:
        name: mnist, fashion_mnist, usps, cifar10, cifar100 or svhn.
        root: the folder that holds the files.
        size: height and width in pixels, or one number for both; images of another size are resized bilinearly.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out, always the same ones; 0 for none.
        train: number of the others to use, stratified by class and always the same ones; None for all.
        download: let torchvision download missing files.
        store: keeps images decoded from class folders.
        skip_bad: with class folders, leave out files that cannot be decoded.

    Raises:
        DataError: files are missing or damaged, classes differ, or the download failed.
    """
    if name not in PUBLIC:
        raise DataError(f"there is no public set {name}: expected one of {', '.join(PUBLIC)}")
    root = Path(root).expanduser()
    public = PUBLIC[name]
    lacking = {home: _missing(root / home / public.inside, public.files) for home in public.homes}
    home, missing = min(lacking.items(), key=lambda item: len(item[1]))
    if missing and any((root / name / part).is_dir() for part in ("train", "test")):
        return _fewer(_from_folders(name, root / name, public, size, channels, val, store, skip_bad), train)
    if missing and not download:
        raise DataError(
            f"{name} is not under {root}: {missing[0]} is missing. Put torchvision's files there or the "
            f"images in {root / name}/{{train,test}}/<class>/, or have it downloaded with data.download=true"
        )
    if missing:
        home = ""
        _download(name, root, public)
    opened = [_open(name, root / home, public, train) for train in (True, False)]
    whole, test = (Split(fit_to(_pixels(o), size=size, channels=channels), _labels(o)) for o in opened)
    rest, val_split = hold_out(whole, val) if val else (whole, None)
    dataset = Dataset(
        name=name,
        classes=public.classes or list(opened[0].classes),
        train=rest,
        val=val_split,
        test=test,
        layout="torchvision",
        encoding="raw",
    )
    return _fewer(dataset, train)


def _fewer(dataset: Dataset, train: int | None) -> Dataset:
    if train is None or dataset.train is None or train == len(dataset.train):
        return dataset
    if not 0 < train < len(dataset.train):
        raise DataError(f"data.train={train}: {dataset.name} has {len(dataset.train)} training images beside data.val")
    return replace(dataset, train=hold_out(dataset.train, train)[1])


def _missing(where: Path, files: Sequence[str]) -> list[Path]:
    return [where / file for file in files if not (where / file).is_file()]


def _from_folders(
    name: str,
    root: Path,
    public: Public,
    size: Size,
    channels: int,
    val: int | float,
    store: Store | None,
    skip_bad: bool,
) -> Dataset:
    """Load class folders, named by class names or by labels."""
    parts = split_folders(root)
    found = class_names(parts.get("train") or parts["test"])
    if len(found) != public.count:
        raise DataError(
            f"{root} holds {len(found)} class folders, but {name} has {public.count} classes: complete it, "
            "or load a set of your own with data=image_folder"
        )
    numbers = [str(label) for label in range(public.count)]
    numbered = set(found) == set(numbers)
    loaded = folder.load(
        root=root,
        name=name,
        size=size,
        channels=channels,
        val=val,
        store=store,
        skip_bad=skip_bad,
        classes=numbers if numbered else public.classes,
    )
    return replace(loaded, classes=public.classes) if public.classes else loaded


def _download(name: str, root: Path, public: Public) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):  # one rank or job downloads, the others wait and find it
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(SILENCE)  # torchvision sets no timeout
            try:
                for train in (True, False):
                    public.open(str(root), train, True)
            finally:
                socket.setdefaulttimeout(before)
    except Exception as error:
        raise DataError(
            f"{name} could not be downloaded into {root}: {' '.join(str(error).split())}. Put its files in "
            f"{root / public.inside}, or the images in {root / name}/{{train,test}}/<class>/"
        ) from error


def _open(name: str, root: Path, public: Public, train: bool) -> Any:
    try:
        for file in public.files:
            if file.endswith(".bz2"):
                _refuse_inflating(root / public.inside / file)
        return public.open(str(root), train, False)
    except Exception as error:
        part = "training" if train else "test"
        raise DataError(
            f"{name}: cannot read the {part} files in {root / public.inside}: {in_a_line(error)}. Delete them and put "
            "complete ones there, or have them downloaded with data.download=true"
        ) from error


def _refuse_inflating(file: Path) -> None:
    with bz2.open(file) as packed:
        size = 0
        while part := packed.read(1 << 20):
            size += len(part)
            if size > MOST_UNPACKED:
                raise ValueError(f"{file.name} unpacks to more than {MOST_UNPACKED:,} bytes")


def _pixels(opened: Any) -> Tensor:
    """uint8 (N,C,H,W) from (N,H,W), (N,H,W,3) or, for SVHN, (N,3,H,W)."""
    pixels = torch.as_tensor(opened.data)
    if pixels.dim() == 3:
        return pixels.unsqueeze(1)
    return (pixels if pixels.shape[1] == 3 else pixels.permute(0, 3, 1, 2)).contiguous()


def _labels(opened: Any) -> Tensor:
    return torch.as_tensor(opened.labels if hasattr(opened, "labels") else opened.targets).long()
