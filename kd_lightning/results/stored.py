"""Hands out a run that the store holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kd_lightning.core.strangers import read_json
from kd_lightning.store.artifacts import remedy
from kd_lightning.store.files import copy_into, writing

NOT_COPIED = ("artifact.json", "latest-run", "debug*.log")  # W&B's links lead out of the folder


def copied(kept: Path, folder: Path) -> None:
    """Copy a finished run's files to a run folder."""
    with writing(folder):
        copy_into(kept, folder, NOT_COPIED)


def result_in(kept: Path) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        UserError: it cannot be read.
    """
    result: dict[str, Any] = read_json(kept / "result.json", advice=remedy(kept))
    return result


def said_again(kept: Path) -> None:
    """Say that what follows is the result of an earlier run."""
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime((kept / "result.json").stat().st_mtime))
    print(
        f"This composition was run before: its stored result of {made} follows (artifacts.reuse=false runs "
        "anew, with artifacts.scope=student the student only)."
    )
