"""Rows that a method made and wants again: generated images as uint8, features as fp32, on the device."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.errors import ConfigError


class Memory:
    """The last ``capacity`` rows that were added, or all of them. Rows never written are never given out.

    It is no module: neither averaged over ranks nor part of a state dict. A checkpoint names its length and
    hash; the rows themselves go to the end of a file beside it, so that a checkpoint stays small and quick.

    Args:
        capacity: rows kept; None keeps all.
        dtype: uint8 takes float images in [0, 1], clamped, and rounds them to 255 steps; any other is kept as is.
    """

    def __init__(self, capacity: int | None = None, *, dtype: torch.dtype = torch.uint8) -> None:
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity must be at least 1, or None for no limit, got {capacity}")
        self.capacity, self.dtype = capacity, dtype
        self.added = 0
        self._held: Tensor | None = None
        self._saved = self._logged = 0
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return self.added if self.capacity is None else min(self.added, self.capacity)

    @property
    def rows(self) -> Tensor:
        """What is held, (len, ...), in the order of its places."""
        if self._held is None:
            raise ValueError("nothing was added to this memory yet")
        return self._held[: len(self)]

    def add(self, rows: Tensor) -> None:
        """Keep rows (N, ...); beyond the capacity they replace the oldest."""
        rows = rows.detach()
        if self.dtype == torch.uint8:
            rows = (rows.float().clamp(0, 1) * 255).round()
        self._write(rows.to(self.dtype))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` rows drawn with replacement; images as float in [0, 1]."""
        drawn = self.rows.index_select(0, torch.randint(len(self), (n,), generator=rng, device=self.rows.device))
        return drawn.float() / 255 if self.dtype == torch.uint8 else drawn

    def save(self, file: Path) -> dict[str, Any]:
        """Append to ``file`` what is held and not in it yet; returns what a checkpoint keeps."""
        fresh = min(self.added - self._saved, len(self))
        if fresh:
            places = torch.arange(self.added - fresh, self.added, device=self.rows.device) % (
                self.capacity or self.added
            )
            content = self.rows.index_select(0, places).cpu().view(torch.uint8).numpy().tobytes()
            with open(file, "r+b" if self._logged else "wb") as out:
                # behind the last save may stand what a killed run wrote before its checkpoint was in place
                out.truncate(self._logged * (len(content) // fresh))
                out.seek(0, os.SEEK_END)
                out.write(content)
            self._hash.update(content)
            self._saved, self._logged = self.added, self._logged + fresh
        shape = list(self.rows.shape[1:]) if self.added else []
        return {"added": self.added, "logged": self._logged, "shape": shape, "sha256": self._hash.hexdigest()}

    def load(self, file: Path, state: dict[str, Any], device: torch.device | str) -> None:
        """Hold what was held when ``save`` returned ``state``; for a memory that is still empty.

        Raises:
            ConfigError: the file lacks it.
        """
        if not state["added"]:
            return
        size = state["logged"] * math.prod(state["shape"]) * self.dtype.itemsize
        content = b""
        if file.is_file():
            with open(file, "rb") as source:
                content = source.read(size)
        self._hash.update(content)
        if self._hash.hexdigest() != state["sha256"]:
            raise ConfigError(
                f"cannot go on: {file} no longer holds the {state['logged']} rows that the checkpoint beside it was "
                "saved with. Start anew with artifacts.reuse=false"
            )
        logged = torch.frombuffer(bytearray(content), dtype=self.dtype).view(-1, *state["shape"])
        kept = min(state["added"], self.capacity or state["added"])
        self.added = state["added"] - kept
        self._write(logged[-kept:].to(device))
        self._saved, self._logged = self.added, state["logged"]

    def _write(self, rows: Tensor) -> None:
        n = len(rows)
        if self.capacity is not None and n > self.capacity:
            self.added, rows, n = self.added + n - self.capacity, rows[-self.capacity :], self.capacity
        wanted = self.capacity or self.added + n
        if self._held is None or len(self._held) < wanted:
            # twice as much at a time, so that growing costs each row one copy on average
            size = self.capacity or max(wanted, 2 * len(self))
            grown = torch.empty(size, *rows.shape[1:], dtype=self.dtype, device=rows.device)
            if self._held is not None:
                grown[: len(self)] = self.rows
            self._held = grown
        places = torch.arange(self.added, self.added + n, device=rows.device) % len(self._held)
        self._held.index_copy_(0, places, rows)
        self.added += n
