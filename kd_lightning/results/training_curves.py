"""The curves of a finished run's fit, from its ``metrics.csv``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_lightning.core import strangers


class Curve(NamedTuple):
    """One quantity over a fit: rounds (n,), seconds (n,), values (n,), and queries so far (n,) if they are counted."""

    rounds: np.ndarray
    seconds: np.ndarray
    values: np.ndarray
    queries: np.ndarray | None = None


def curves(folder: str | Path) -> dict[str, Curve]:
    """All curves in the ``metrics.csv`` of a run folder, by name; empty entries are left out.

    Raises:
        UserError: there is no such file, or kd_lightning did not write it.
    """
    path = Path(folder) / "metrics.csv"
    with strangers.reading(path, said=f"{path} holds no curves of kd_lightning"):
        rows = list(csv.DictReader(strangers.read_text(path, strangers.MOST_TABLE).splitlines()))
        names = [name for name in (rows[0] if rows else ()) if name not in ("round", "seconds", "epoch", "queries")]
        asked = ["queries"] if rows and "queries" in rows[0] else []
        found = {}
        for name in names:
            there = [row for row in rows if row[name]]
            columns = [[float(row[key]) for row in there] for key in ("round", "seconds", name, *asked)]
            found[name] = Curve(*map(np.array, columns))
    return found
