"""The LightningDataModule every fit is given."""

from __future__ import annotations

from typing import Any

import lightning as L

from kd_lightning.data.loader import TensorLoader


class Images(L.LightningDataModule):
    """What training may see, beside what validation measures on.

    Args:
        train: what the source prepared: any sized iterable.
        val: labelled images with the teacher's answers, or None.
    """

    def __init__(self, train: Any, val: TensorLoader | None) -> None:
        super().__init__()
        self._train, self._val = train, val

    def train_dataloader(self) -> Any:
        """The source's batches."""
        return self._train

    def val_dataloader(self) -> Any:
        """Validation batches, or nothing."""
        return self._val if self._val is not None else []
