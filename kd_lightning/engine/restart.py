"""Starts a fit over with another seed after its generator collapsed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kd_lightning.core.collapse import Collapsed
from kd_lightning.core.strangers import read_json
from kd_lightning.errors import TrainingError
from kd_lightning.store.files import write_json, writing

REMEDY = (
    "Lower {lr}, raise the weight of the class balance or the batch size, or try another seed "
    "(method.on_collapse=restart does by itself)"
)
TRIES = 3
"""Most restarts of one fit."""


def restarts(work: Path) -> list[dict[str, Any]]:
    """The earlier attempts of a fit, all of which collapsed: ``{seed, round}`` each."""
    file = work / "restarts.json"
    return read_json(file, advice=f"remove {file}") if file.is_file() else []


def next_seed(seed: int, collapsed: int) -> int:
    """The seed of a fit's next attempt: ``seed`` itself for the first, derived from it after a collapse."""
    return int(np.random.SeedSequence((seed, collapsed)).generate_state(1)[0]) if collapsed else seed


def begin_again(work: Path, seed: int, error: Collapsed) -> None:
    """Record the collapsed attempt and clear the folder for the next.

    Raises:
        TrainingError: the fit was restarted ``TRIES`` times before.
    """
    before = restarts(work)
    if len(before) == TRIES:
        tried = ", ".join(str(attempt["seed"]) for attempt in [*before, {"seed": seed}])
        raise TrainingError(f"{error}, and so it did with each of the seeds {tried}. {error.remedy}") from error
    with writing(work):
        for left in work.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    write_json(work / "restarts.json", [*before, {"seed": seed, "round": error.round}])
    print(f"{error}. Beginning again with another seed, {len(before) + 1} of {TRIES}", file=sys.stderr, flush=True)
