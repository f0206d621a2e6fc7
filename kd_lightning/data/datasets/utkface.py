"""UTKFace: faces with ages in their file names, or the HDF5 file that cGAN-KD's authors made of them.

Zhang, Song and Qi, *Age Progression/Regression by Conditional Adversarial Autoencoder* (CVPR 2017).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from kd_lightning.core.sides import Size
from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset, Split, hold_out
from kd_lightning.data.datasets import h5
from kd_lightning.data.datasets.decoding import decoded
from kd_lightning.data.datasets.image_files import ENCODINGS
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

FILE = "UTKFace_64x64_prop_0.8.h5"
NAME = re.compile(r"(\d{1,3})_\d")
"""``[age]_[gender]_[race]_[date&time].jpg``; in a few published names the race is missing."""


def load(
    *,
    task: Regression,
    root: str | Path,
    size: Size = 64,
    channels: int = 3,
    val: int | float = 0,
    test: float = 0.2,
    at_most: int | None = None,
    seed: int = 0,
    store: Store | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Load ``root`` if it is a file, else the authors' file in it, else the images in ``root/UTKFace`` or ``root``.

    Args:
        task: the range of ages, in years; images of a folder with other ages are left out.
        root: the file or folder.
        size: height and width in pixels, or one number for both.
        channels: 1 (grey) or 3 (RGB).
        val: number or share of training images held out; 0 for none.
        test: share of a folder's images for the test, stratified by age; a file has its own test.
        at_most: most training images of one age, chosen at random; None for all.
        seed: of that choice and of the test.
        store: keeps decoded images.
        skip_bad: leave out files that cannot be decoded or have no age in their names, and count them.

    Raises:
        DataError: no images, a name without an age, an image that cannot be decoded, or what ``h5.load`` raises.
    """
    root = Path(root).expanduser()
    file = root if root.is_file() else root / FILE
    skipped, encoding = 0, "raw"
    if file.is_file():
        with h5.opened(file) as content:
            parts = [h5.read_part(content, part, size=size, channels=channels) for part in ("train", "test")]
        train, held = parts
    else:
        folder = root / "UTKFace" if (root / "UTKFace").is_dir() else root
        whole, skipped, encoding = _pictures(folder, task, size, channels, store, skip_bad)
        train, held = (_numbered(part) for part in hold_out(whole, test, seed=seed))
    if at_most is not None:
        train = _at_most(train, at_most, seed)
    train, val_part = hold_out(train, val) if val else (train, None)
    layout = "h5" if file.is_file() else "files"
    return Dataset("utkface", [], train, val_part, held, layout, encoding, skipped=skipped, task=task)


def _pictures(
    folder: Path, task: Regression, size: Size, channels: int, store: Store | None, skip_bad: bool
) -> tuple[Split, int, str]:
    """Images with their ages, int64, the number of files left out, and the encoding."""
    found = sorted(
        Path(base) / name
        for base, _, inside in os.walk(folder)
        for name in inside
        if os.path.splitext(name)[1].lower() in ENCODINGS and not name.startswith(".")
    )
    if not found:
        raise DataError(
            f"no faces in {folder}: expected {FILE}, or pictures called [age]_[gender]_[race]_[time].jpg in it or in "
            "its folder UTKFace. Put them there, or name another folder with data.root=DIR"
        )
    ages = {path: int(match[1]) for path in found if (match := NAME.match(path.name))}
    if len(ages) < len(found) and not skip_bad:
        nameless = next(path for path in found if path not in ages)
        raise DataError(
            f"{nameless}: no age in its name, expected [age]_[gender]_[race]_[time].jpg. Rename it, or leave such "
            "files out with data.skip_bad=true"
        )
    wanted = [path for path, age in ages.items() if task.low <= age <= task.high]
    if not wanted:
        raise DataError(f"no face in {folder} is {task.low:g} to {task.high:g} {task.unit} old: set data.task.high")
    images, good, bad = decoded(folder, wanted, size=size, channels=channels, store=store, skip_bad=skip_bad)
    labels = torch.tensor([ages[wanted[i]] for i in good.tolist()])
    encoding = "+".join(sorted({ENCODINGS[path.suffix.lower()] for path in wanted}))
    return Split(images, labels), len(bad) + len(found) - len(ages), encoding


def _numbered(split: Split) -> Split:
    return Split(split.images, split.labels.float())


def _at_most(split: Split, count: int, seed: int) -> Split:
    """At most ``count`` images of each label, chosen by ``seed``, in their original order."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    labels = split.labels[order]
    index = torch.cat([order[labels == label][:count] for label in labels.unique()]).sort().values
    return Split(split.images[index], split.labels[index])
