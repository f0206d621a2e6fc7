"""Checkpoints at fixed intervals of time, from which a killed fit resumes to bitwise the same result."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from kd_lightning.engine.slices import Slice
from kd_lightning.store.files import writing


class Resumable(Checkpoint):
    """Saves ``last.ckpt`` every ``seconds`` seconds, so that a kill loses no more than that.

    Lightning's own time-based checkpoints do nothing under manual optimisation. Nothing is saved when a step
    raises: the round is then incomplete, and a resumed run would differ from an uninterrupted one. Nothing is
    saved between a round and the validation or epoch end that follows it: Lightning would resume after those
    and skip them. As a ``Checkpoint`` it is called after the method and all other callbacks.
    """

    def __init__(self, path: Path, *, seconds: float | None = None, slice_: Slice | None = None) -> None:
        self.path = path
        self.slice = slice_
        self.seconds = float(os.environ.get("KD_CHECKPOINT_SECONDS", 20)) if seconds is None else seconds
        self.last = time.monotonic()
        self.before: Any = None
        self.stopping = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on Ctrl-C ends the fit after the round under way, whose state is saved; twice ends it at once."""
        here = threading.current_thread() is threading.main_thread()  # only there signals can be caught
        if trainer.world_size == 1 and here and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self.before = signal.signal(signal.SIGINT, self._stop)

    def _stop(self, *args: Any) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        print("stopping after this round; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def _interruptible_again(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            self.before = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C its meaning back."""
        self._interruptible_again()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if ``seconds`` have passed on the first rank's clock, which several ranks compare every 50 rounds."""
        done = batch_idx + 1
        ends = done == trainer.num_training_batches or done % (trainer.val_check_batch or 1) == 0
        if not ends and (trainer.world_size == 1 or done % 50 == 0):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if ``seconds`` have passed, after validation and schedules; ``on_train_end`` saves the last epoch."""
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last state."""
        self._save(trainer)
        self._interruptible_again()
        if self.slice is not None:
            self.slice.leave(trainer, ended=True)
        elif self.stopping:
            raise KeyboardInterrupt

    def _save_if_due(self, trainer: L.Trainer) -> None:
        if self.slice is not None:
            self.stopping = self.stopping or trainer.strategy.broadcast(self.slice.over)  # by the first rank's clock
        if trainer.strategy.broadcast(self.stopping or time.monotonic() - self.last >= self.seconds):
            self._save(trainer)
        if self.stopping:
            if self.slice is not None:
                self.slice.leave(trainer, ended=False)
            raise KeyboardInterrupt

    def _save(self, trainer: L.Trainer) -> None:
        part = self.path.with_name(self.path.name + ".part")
        with writing(self.path):
            trainer.save_checkpoint(part, weights_only=False)
            if trainer.is_global_zero:
                os.replace(part, self.path)  # readers see the old checkpoint or the new one
        self.last = time.monotonic()
