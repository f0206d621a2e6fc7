"""Real images, and with each batch counterfactual ones from a folder, which have three labels each.

The folder is as written by CGN (Sauer and Geiger, ICLR 2021): images below it, for example in ``ims``, and
``labels.csv`` with the columns im_name, shape_cls, texture_cls and bg_cls.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.batches import CounterfactualBatch
from kd_lightning.data.datasets.decoding import decoded
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.errors import DataError
from kd_lightning.sources.context import Context

COLUMNS = ("im_name", "shape_cls", "texture_cls", "bg_cls")


class RealAndCounterfactual:
    """Every training image, shuffled, with random counterfactual images in each batch.

    Args:
        folder: of the counterfactual images, with its ``labels.csv``.
        batch_size: real images per batch and rank.
        cf_ratio: counterfactual images per real one; 0 for none.
        augment: applied to both in this order.

    Raises:
        DataError: there is no such folder, or its labels are missing or invalid.
    """

    needs = frozenset({"task.classification"})
    offers = frozenset({"source.images", "source.labels", "source.counterfactuals"})

    def __init__(
        self, *, folder: str, batch_size: int, cf_ratio: float = 1.0, augment: Sequence[Augmentation] = ()
    ) -> None:
        self.folder, self.batch_size, self.cf_ratio = Path(folder).expanduser(), batch_size, cf_ratio
        self.augment = tuple(augment)

    def prepare(self, context: Context) -> PairedLoader:
        """A resumable loader of both."""
        split = context.real()
        real = context.serve(split.images, split.labels, batch_size=self.batch_size, augment=self.augment)
        channels, *size = context.dataset.image_shape
        files, causes = labelled(self.folder, context.dataset.num_classes)
        images, _, _ = decoded(self.folder, files, size=size, channels=channels, store=context.store, skip_bad=False)
        return PairedLoader(real, images.to(context.device), causes.to(context.device), self)


class PairedLoader:
    """Batches of a loader, each with counterfactual images that depend only on its position and the rank."""

    def __init__(self, real: TensorLoader, images: Tensor, causes: Tensor, source: RealAndCounterfactual) -> None:
        self.real, self.images, self.causes, self.source = real, images, causes, source
        self.rng = torch.Generator(images.device)

    def __len__(self) -> int:
        return len(self.real)

    def __iter__(self) -> Iterator[CounterfactualBatch]:
        for batch in self.real:
            words = (self.real.seed, self.real.epoch, self.real.turn, self.real.cursor, self.real.rank)
            self.rng.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]))
            n = round(self.source.cf_ratio * len(batch.x))
            drawn = torch.randint(len(self.images), (n,), generator=self.rng, device=self.images.device)
            made = self.images[drawn].float().div_(255)
            for augmentation in self.source.augment if n else ():
                made = augmentation(made, self.rng)
            assert batch.y is not None
            yield CounterfactualBatch(batch.x, batch.y, made, self.causes[drawn])

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``sampler.set_epoch``."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Begin ``epoch``."""
        self.real.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """The position in the real images."""
        return self.real.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after it."""
        self.real.load_state_dict(state)


def labelled(folder: Path, num_classes: int) -> tuple[list[Path], Tensor]:
    """Image files of a folder of counterfactuals, and the classes of shape, texture and background, int64 (N, 3).

    Repeated header lines between the rows, which CGN's script leaves when it appends, are skipped.

    Raises:
        DataError: no ``labels.csv``, or one with other columns, invalid classes, missing images or no rows.
    """
    table = folder / "labels.csv"
    if not table.is_file():
        raise DataError(f"source.folder: there is no {table}. Give a folder with images and labels.csv, as CGN writes")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(set(COLUMNS) - row.keys() for row in rows):
        raise DataError(f"{table}: expected a header {','.join(COLUMNS)} and a row for each image")
    rows = [row for row in rows if row["im_name"] != "im_name"]
    where = {path.name: path for path in sorted(folder.rglob("*")) if path.is_file()}
    files, causes = [], []
    for row in rows:
        name = Path(row["im_name"] or "").name
        if name not in where:
            raise DataError(f"{table} names {name}, which is not below {folder}")
        try:
            classes = [int(row[column]) for column in COLUMNS[1:]]
        except (TypeError, ValueError):
            classes = [-1]
        if not all(0 <= k < num_classes for k in classes):
            given = ", ".join(str(row[column]) for column in COLUMNS[1:])
            raise DataError(f"{table}: {name} has the classes {given}, expected three of 0 to {num_classes - 1}")
        files.append(where[name])
        causes.append(classes)
    return files, torch.tensor(causes)
