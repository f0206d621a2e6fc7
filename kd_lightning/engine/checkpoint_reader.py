"""Checkpoints: marked with a format version when written, checked before a fit resumes from one."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from kd_lightning.core import strangers
from kd_lightning.core.file_format import FORMAT_VERSION, refuse_format
from kd_lightning.errors import UserError
from kd_lightning.networks.weights import odd_kind, read_torch

PARTS = {
    "state_dict": (dict, OrderedDict),
    "epoch": (int,),
    "global_step": (int,),
    "loops": (dict,),
    "callbacks": (dict,),
    "optimizer_states": (list,),
    "lr_schedulers": (list,),
    "method": (str,),
}
"""Entries of a checkpoint, and the types they may have."""


class Marked(Callback):
    """Adds ``format_version`` and the method's class to every checkpoint, and explains a failure to resume.

    Args:
        goes_on_from: the checkpoint that the fit resumes from, or None.
    """

    def __init__(self, goes_on_from: Path | None = None) -> None:
        self.unproven = goes_on_from

    def on_train_batch_end(self, *_: Any) -> None:
        """Accept the checkpoint: a round has succeeded since the fit resumed."""
        self.unproven = None

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Inside the ``with`` block, name the checkpoint in an error before the first round after a resume is done.

        Raises:
            UserError: the fit resumed from a checkpoint and failed before a round was done.
        """
        try:
            yield
        except Exception as error:
            if self.unproven is None or isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.unproven}: the fit cannot go on from it ({strangers.in_a_line(error)}). Remove "
                f"{self.unproven} to begin this fit anew"
            ) from error

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add ``format_version`` and ``method``."""
        checkpoint |= {"format_version": FORMAT_VERSION, "method": type(pl_module).__name__}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of kd_lightning and check its entries; its tensors stay on the disk until they are used.

    Raises:
        VersionError: it has another format.
        UserError: it is missing or damaged, holds more than tensors and plain data, or is not of kd_lightning.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path} is missing")
    with strangers.reading(path, advice="copy it again, or train anew"):
        content = read_torch(path)
        if not isinstance(content, dict) or "state_dict" not in content:
            raise UserError(f"{path} is no checkpoint of kd_lightning")
        refuse_format(content.get("format_version", 1), path, "remove it to begin anew")
        for name, kind in PARTS.items():
            if name in content and type(content[name]) not in kind:
                raise TypeError(f"{name} is a {type(content[name]).__name__}, expected a {kind[0].__name__}")
        for name, value in content["state_dict"].items():
            if not isinstance(name, str) or not isinstance(value, Tensor) or odd_kind(value):
                raise TypeError(f"state_dict holds {name!r:.60}, which is no tensor with a name")
        return content


def resumable(path: Path, method: nn.Module) -> Path | None:
    """Return ``path`` if an interrupted fit of this method left a checkpoint there, None if there is no file.

    Raises:
        UserError: it is damaged, or belongs to another method or to networks of other widths.
    """
    if not os.path.lexists(path):
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
