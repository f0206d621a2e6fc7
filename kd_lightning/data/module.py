"""The LightningDataModule of every fit."""

from __future__ import annotations

from typing import Any

import lightning as L

from kd_lightning.data.batches import Batch, StreamsBatch
from kd_lightning.data.loader import TensorLoader
from kd_lightning.teachers.black_box import eight_bits


class Images(L.LightningDataModule):
    """Training batches of a source, and validation batches.

    Args:
        train: the source's batches, any sized iterable.
        val: labelled images with the teacher's answers, or None.
        eight_bits: round images to steps of 1/255: a black-box teacher is queried with such images, and the student
            must get the same.
    """

    def __init__(self, train: Any, val: TensorLoader | None, *, eight_bits: bool = False) -> None:
        super().__init__()
        self._train, self._val, self._eight_bits = train, val, eight_bits

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Round images if ``eight_bits``."""
        if self._eight_bits and isinstance(batch, StreamsBatch):
            return StreamsBatch(*(part._replace(x=eight_bits(part.x)) for part in batch))
        if self._eight_bits and isinstance(batch, Batch):
            return batch._replace(x=eight_bits(batch.x))
        return batch

    def train_dataloader(self) -> Any:
        """The source's batches."""
        return self._train

    def val_dataloader(self) -> Any:
        """Validation batches, or an empty list."""
        return self._val if self._val is not None else []
