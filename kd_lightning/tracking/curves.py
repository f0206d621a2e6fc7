"""The curves of a fit: rows of ``metrics.csv`` in its folder, also passed on to the dashboards."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from kd_lightning.store.files import writing
from kd_lightning.teachers.black_box import QueryTeacher
from kd_lightning.tracking.backends import Dashboards

AXES = ("seconds", "queries")
"""Possible x axes of a curve, besides rounds."""


class Curves(Logger):
    """A logger that writes all values to ``metrics.csv``, one row per round.

    A killed run loses only the rows since its last checkpoint: :class:`KeepCurves` saves them with it.

    Args:
        folder: where ``metrics.csv`` is written.
        boards: dashboards that get every row too.
        asked: a black-box teacher; the number of images it was asked about so far becomes the column ``queries``.
    """

    def __init__(
        self, folder: str | Path, boards: Dashboards | None = None, *, asked: QueryTeacher | None = None
    ) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.boards = boards or Dashboards()
        self.asked = asked
        self.rows: list[dict[str, float]] = []
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    @property
    def name(self) -> str:
        """The logger's name."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: there is one run per folder."""
        return ""

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over resumes."""
        return self.seconds_before + time.perf_counter() - self.started

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the composition is already in ``.hydra/``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of round ``step``."""
        fresh = {k: float(v) for k, v in metrics.items()}
        if not self.rows or self.rows[-1]["round"] != step:
            asked = {"queries": self.asked.asked} if self.asked else {}
            self.rows.append({"round": step or 0, "seconds": round(self.seconds, 3), **asked})
        self.rows[-1].update(fresh)
        self.boards.numbers({k: self.rows[-1][k] for k in AXES if k in self.rows[-1]} | fresh, step or 0)

    @rank_zero_only
    def save(self) -> None:
        """Rewrite the file."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        with writing(self.file):
            self.file.write_text(text.getvalue())

    def finalize(self, status: str) -> None:
        """Write the file at the end of the fit."""
        self.save()


class KeepCurves(Callback):
    """Saves the rows of :class:`Curves` in checkpoints; on resuming restores them and logs them to the dashboards."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def state_dict(self) -> dict[str, Any]:
        """Rows, and seconds of training so far."""
        return {"rows": self.curves.rows, "seconds": self.curves.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore rows and seconds, and log the rows to the dashboards."""
        self.curves.rows = list(state_dict["rows"])
        self.curves.seconds_before, self.curves.started = state_dict["seconds"], time.perf_counter()
        for row in self.curves.rows:
            self.curves.boards.numbers({k: v for k, v in row.items() if k != "round"}, int(row["round"]))


def replay(folder: Path, boards: Dashboards) -> None:
    """Log the curves and pictures of a reused fit to dashboards that were not open when it ran."""
    if not boards.loggers:
        return
    round_ = 0
    with (folder / "metrics.csv").open() as rows:
        for row in csv.DictReader(rows):
            round_ = int(row["round"])
            boards.numbers({k: float(v) for k, v in row.items() if v and k != "round"}, round_)
    for path in sorted((folder / "samples").glob("*.png")):
        with Image.open(path) as picture:
            boards.picture(path.stem.rpartition("_")[0], picture, round_)
