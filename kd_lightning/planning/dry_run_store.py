"""Stores of a rehearsal: one that goes away, over one that stays, and one that builds nothing; and their clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kd_lightning.store.artifacts import Store, size_of


def now_on_device() -> float:
    """Seconds on a clock, all that was asked of the device being done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Overlay(Store):
    """What ``kept`` holds, in a folder where what is built can be thrown away."""

    def __init__(self, kept: Store, place: Path) -> None:
        super().__init__(place)
        self.seconds: dict[str, float] = {}
        self.sizes: dict[str, int] = {}
        if kept.reuse and kept.root.is_dir():
            for folder in kept.root.iterdir():
                if (folder / "artifact.json").is_file():
                    (place / folder.name).symlink_to(folder.absolute())

    def obtain(self, kind: str, config: Mapping[str, Any], build: Callable[[Path], None], **how: Any) -> Path:
        """As ever, on a clock."""
        start = now_on_device()
        folder = super().obtain(kind, config, build, **how)
        self.seconds[kind], self.sizes[kind] = now_on_device() - start, size_of(folder.resolve())
        return folder


class Missing(Exception):
    """A source needs something that nobody has made."""


class Probe(Store):
    """Gives what is there and builds nothing."""

    def obtain(self, kind: str, config: Mapping[str, Any], build: Callable[[Path], None], **how: Any) -> Path:
        """The folder.

        Raises:
            Missing: it is not there.
        """
        folder = self.path(kind, config)
        if not self._usable(folder):
            raise Missing(folder.name)
        return folder
