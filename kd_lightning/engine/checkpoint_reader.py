"""Checkpoints: marked when they are written, looked through before anything goes on from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.store.artifacts import FORMAT_VERSION, refuse_format


class Marked(Callback):
    """Puts ``format_version`` and the method's class into every checkpoint."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add both."""
        checkpoint |= {"format_version": FORMAT_VERSION, "method": type(pl_module).__name__}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of kd_lightning; its tensors stay on the disk until they are read.

    Raises:
        VersionError: it has another format.
        UserError: missing, damaged, with more than tensors and plain data in it, or none of ours.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises nearly anything on damaged files
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is no checkpoint of kd_lightning")
    refuse_format(content.get("format_version", 1), path, "remove it to begin anew")
    return content


def resumable(path: Path, method: nn.Module) -> Path | None:
    """``path`` if a killed fit of this very method left a checkpoint there, None if there is none.

    Raises:
        UserError: it is damaged, or belongs to another method or to networks of other widths.
    """
    if not path.is_file():
        return None
    try:
        found = read_checkpoint(path)
    except UserError as error:
        raise type(error)(f"{error}. Remove {path} to begin this fit anew") from error
    held, wanted = found["state_dict"], method.state_dict()
    names = sorted(held.keys() ^ wanted.keys())
    wrong = [f"{name} is in {'it' if name in held else 'the method'} alone" for name in names]
    wrong += [
        f"{name} is {tuple(held[name].shape)} in it, {tuple(value.shape)} in the method"
        for name, value in wanted.items()
        if name in held and held[name].shape != value.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{path} is a checkpoint of another fit ({found.get('method', 'unknown')}, this is "
            f"{type(method).__name__}): {wrong[0]}{more}. Remove it to begin this fit anew"
        )
    return path
