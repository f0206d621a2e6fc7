"""When a fit is saved, so that a kill at any moment costs seconds and the resumed fit ends in the same bits."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from kd_lightning.store.artifacts import writing


class Resumable(Checkpoint):
    """Keeps ``last.ckpt`` no older than ``seconds``: a kill at any moment loses no more than that.

    Lightning's own time-based checkpoints do nothing under manual optimisation. Nothing is saved when a step
    raises: half a round has happened then, and a resumed run would differ from an uninterrupted one. Nothing is
    saved between a round and the validation or the end of the epoch that follows it: Lightning would go on
    behind those. As a ``Checkpoint`` it is called after the method and all other callbacks.
    """

    def __init__(self, path: Path, *, seconds: float | None = None) -> None:
        self.path = path
        self.seconds = float(os.environ.get("KD_CHECKPOINT_SECONDS", 20)) if seconds is None else seconds
        self.last = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; ranks agree on the first one's clock, asked seldom."""
        done = batch_idx + 1
        ends = done == trainer.num_training_batches or done % (trainer.val_check_batch or 1) == 0
        if not ends and (trainer.world_size == 1 or done % 50 == 0):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it is time, after validation and schedules; the last epoch is saved by what follows."""
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last state."""
        self._save(trainer)

    def _save_if_due(self, trainer: L.Trainer) -> None:
        if trainer.strategy.broadcast(time.monotonic() - self.last >= self.seconds):
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        part = self.path.with_name(self.path.name + ".part")
        with writing(self.path):
            trainer.save_checkpoint(part, weights_only=False)
            if trainer.is_global_zero:
                os.replace(part, self.path)  # readers see the old checkpoint or the new one
        self.last = time.monotonic()
