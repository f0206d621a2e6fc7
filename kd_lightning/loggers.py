"""Curves and pictures for whatever dashboard is there; a method never names one."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from kd_lightning.artifacts import writing


class Curves(Logger):
    """Everything logged, as rows over rounds, in ``metrics.csv``.

    A killed run loses only the rows since its last checkpoint: :class:`KeepCurves` saves them with it.

    Args:
        folder: where ``metrics.csv`` is written.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, float]] = []
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    @property
    def name(self) -> str:
        """The logger's name."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one run per folder."""
        return ""

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over resumes."""
        return self.seconds_before + time.perf_counter() - self.started

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The composition is in ``.hydra/`` already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the row of this round."""
        fresh = {k: float(v) for k, v in metrics.items()}
        if self.rows and self.rows[-1]["round"] == step:
            self.rows[-1].update(fresh)
        else:
            self.rows.append({"round": step or 0, "seconds": round(self.seconds, 3), **fresh})

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        with writing(self.file):
            self.file.write_text(text.getvalue())

    def finalize(self, status: str) -> None:
        """Leave the file complete."""
        self.save()


class KeepCurves(Callback):
    """Puts the rows of :class:`Curves` into checkpoints and takes them back."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def state_dict(self) -> dict[str, Any]:
        """Rows and seconds."""
        return {"rows": self.curves.rows, "seconds": self.curves.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.curves.rows = list(state_dict["rows"])
        self.curves.seconds_before, self.curves.started = state_dict["seconds"], time.perf_counter()


def replay(file: Path, loggers: Sequence[Any]) -> None:
    """Give the rows of a kept fit's ``metrics.csv`` to loggers that were not there when it ran."""
    with file.open() as rows:
        for row in csv.DictReader(rows):
            values = {k: float(v) for k, v in row.items() if v and k != "round"}
            for logger in loggers:
                logger.log_metrics(values, step=int(row["round"]))


def finish(loggers: Sequence[Any]) -> None:
    """Flush and close; a dashboard's next run is then a new one."""
    for logger in loggers:
        logger.finalize("success")
        if hasattr(logger.experiment, "finish"):
            logger.experiment.finish()


def to_uint8(images: Tensor) -> Tensor:
    """Images in data units, clamped to [0, 1], as uint8 (N, C, H, W) on the CPU."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def save_grid(images: Tensor, path: Path, *, columns: int = 10, zoom: int | None = None) -> None:
    """Write uint8 images (N, C, H, W) as one PNG, enlarged so that each is at least about 48 pixels wide."""
    zoom = zoom or max(1, 48 // images.shape[-1])
    enlarged = images.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    grid = make_grid(enlarged, nrow=columns, padding=max(2, zoom // 2), pad_value=255)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path)


@rank_zero_only
def log_images(trainer: L.Trainer, key: str, images: Tensor, captions: Sequence[str], folder: Path) -> None:
    """Show uint8 images (N, C, H, W) wherever the run is watched, and always as a PNG in ``folder``."""
    save_grid(images, folder / f"{key.replace('/', '_')}_{trainer.current_epoch + 1:04d}.png")
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            pictures = [image.permute(1, 2, 0).numpy() for image in images]
            logger.log_image(key, [p.squeeze() for p in pictures], caption=list(captions))
        elif hasattr(board := getattr(logger, "experiment", None), "add_images"):
            board.add_images(key, images, trainer.global_step)  # type: ignore[union-attr]
