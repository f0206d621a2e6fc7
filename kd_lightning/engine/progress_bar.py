"""The progress bar of a fit."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from kd_lightning.methods.base.distiller import Distiller

BAR = "{desc} {percentage:3.0f}%|{bar:8}| {n_fmt}/{total_fmt} rounds, {rate_noinv_fmt}, {remaining} left{postfix}"
"""Format of the tqdm bar; the bar itself is short, so that the numbers fit on a line of 80 columns."""


class PhaseBar(ProgressBar):
    """Progress bar over all rounds: the last validation metric, rounds/s, and the losses that there is room for.

    If stderr is not a terminal, a line is printed every ``seconds`` seconds instead.

    Args:
        phase: name shown, such as ``teacher``.
        seconds: time between two lines where there is no terminal.
    """

    def __init__(self, phase: str, *, seconds: float = 20.0) -> None:
        super().__init__()
        self.phase, self.seconds = phase, seconds
        self.bar: tqdm | None = None
        self.terminal = sys.stderr.isatty()
        self.shown = self.last_line = 0.0
        self.told = -1
        self.enabled = True

    def disable(self) -> None:
        """Stop showing; Lightning calls this on all ranks but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Start showing again."""
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the rounds already done; a resumed fit does not start at 0."""
        self.total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self.first, self.started = done, time.perf_counter()
        self.last_line = self.started
        if self.enabled and self.terminal:
            self.bar = tqdm(
                total=self.total,
                initial=done,
                desc=self.phase,
                unit="",
                bar_format=BAR,
                dynamic_ncols=True,
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Refresh at most ten times a second: refreshing costs more than a small step."""
        now = time.perf_counter()
        if self.enabled and now - self.shown > 0.1:
            self.shown = now
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the last state and close the bar."""
        self.last_line = -math.inf
        if self.enabled:
            self._show(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        measured, losses = _numbers(trainer, pl_module)
        if self.bar is not None:
            self.bar.set_description_str(" ".join([self.phase, *measured]), refresh=False)
            self.bar.set_postfix_str("", refresh=False)
            room = (self.bar.ncols or 80) - len(str(self.bar)) - len(f"{self.total}")
            shown: list[str] = []
            while losses and len(", ".join([*shown, losses[0]])) + 2 <= room:
                shown.append(losses.pop(0))
            self.bar.set_postfix_str(", ".join(shown), refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.perf_counter()
        if not self.terminal and now - self.last_line >= self.seconds and done != self.told:
            self.last_line, self.told = now, done
            rate = (done - self.first) / max(now - self.started, 1e-9)
            said = ", ".join([*measured, f"round {done}/{self.total}", f"{rate:.1f} rounds/s", *losses])
            print(f"{self.phase}: {said}", file=sys.stderr, flush=True)


def _numbers(trainer: L.Trainer, method: L.LightningModule) -> tuple[list[str], list[str]]:
    """The last validation metric, and the first two losses, in words."""
    assert isinstance(method, Distiller)
    losses = {k.removeprefix("train/"): v for k, v in method.latest.items() if k.startswith("train/")}
    measured = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    return tuple([f"{k} {v:.3f}" for k, v in list(some.items())[:n]] for some, n in ((measured, 1), (losses, 2)))  # type: ignore[return-value]
