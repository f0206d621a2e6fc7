"""Stores of a dry run: a temporary one on top of the real one, and one that builds nothing; and their clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kd_lightning.store.artifacts import Store
from kd_lightning.store.files import size_of


def now_on_device() -> float:
    """Seconds of a monotonic clock, read when the device has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Overlay(Store):
    """A temporary store in ``place`` that links to all artefacts of ``kept`` and builds the others itself."""

    def __init__(self, kept: Store, place: Path) -> None:
        super().__init__(place)
        self.seconds: dict[str, float] = {}
        self.sizes: dict[str, int] = {}
        if not kept.anew() and kept.root.is_dir():
            for folder in kept.root.iterdir():
                old = kept.anew(students=folder.name.startswith("run-"))
                if (folder / "artifact.json").is_file() and not old:
                    (place / folder.name).symlink_to(folder.absolute())

    def obtain(self, kind: str, config: Mapping[str, Any], build: Callable[[Path], None], **how: Any) -> Path:
        """Obtain an artefact as :class:`Store` does, and record its seconds and bytes by kind."""
        start = now_on_device()
        folder = super().obtain(kind, config, build, **how)
        self.seconds[kind], self.sizes[kind] = now_on_device() - start, size_of(folder.resolve())
        return folder


class Missing(Exception):
    """A source needs an artefact that is not in the store."""


class Probe(Store):
    """A store that returns existing artefacts and builds nothing."""

    def obtain(self, kind: str, config: Mapping[str, Any], build: Callable[[Path], None], **how: Any) -> Path:
        """Return the folder of an artefact.

        Raises:
            Missing: it is not in the store.
        """
        folder = self.path(kind, config)
        if not self._usable(folder):
            raise Missing(folder.name)
        return folder
