"""Silence messages that libraries print at every start and that need no action."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path


def quiet() -> None:
    """Hide W&B's output, Lightning's banner and its advice on loaders; errors are still shown."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*you defined a `validation_step` but have no `val_dataloader`.*",
        ".*lr_scheduler.step... before .optimizer.step.*",
        ".*`(train|val)_dataloader` returned an empty.*",
        ".*Total length of `.*` across ranks is zero.*",
        ".*The .* logger connector.*",
        ".*module.s. in eval mode at the start of training.*",
        "The .grad attribute of a Tensor that is not a leaf.*",  # read by torch.compile itself
    ):
        warnings.filterwarnings("ignore", message)


def plain_warnings() -> None:
    """Print this package's warnings in one line without file and line number; call it after importing Lightning."""
    theirs, here = warnings.formatwarning, str(Path(__file__).parents[1])

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if filename.startswith(here):
            return f"warning: {message}\n"
        return theirs(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
