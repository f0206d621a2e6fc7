"""Buffers of a method's earlier outputs on the device: generated images as uint8, features as fp32."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.errors import ConfigError


class ImageBuffer:
    """The last ``capacity`` rows that were added, or all of them.

    It is not a module: it is neither averaged over ranks nor part of a state dict. A checkpoint holds its length and
    hash; the rows are appended to a file beside it, so that saving a checkpoint stays fast.

    Args:
        capacity: number of rows to keep; None keeps all.
        dtype: uint8 clamps float images to [0, 1] and rounds to steps of 1/255; others keep rows as they are.
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
        """The rows held, (len, ...), in storage order: beyond the capacity not the order in which they were added."""
        if self._held is None:
            raise ValueError("nothing was added to this buffer yet")
        return self._held[: len(self)]

    def add(self, rows: Tensor) -> None:
        """Keep rows (N, ...); beyond the capacity they replace the oldest."""
        rows = rows.detach()
        if self.dtype == torch.uint8:
            rows = (rows.float().clamp(0, 1) * 255).round()
        self._write(rows.to(self.dtype))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` rows drawn with replacement; images as float in [0, 1]."""
        return self.at(torch.randint(len(self), (n,), generator=rng, device=self.rows.device))

    def at(self, places: Tensor) -> Tensor:
        """The rows at these places; images as float in [0, 1]."""
        drawn = self.rows.index_select(0, places)
        return drawn.float() / 255 if self.dtype == torch.uint8 else drawn

    def save(self, file: Path) -> dict[str, Any]:
        """Append the rows that are not in ``file`` yet; return the state for a checkpoint."""
        fresh = min(self.added - self._saved, len(self))
        if fresh:
            places = torch.arange(self.added - fresh, self.added, device=self.rows.device) % (
                self.capacity or self.added
            )
            content = self.rows.index_select(0, places).cpu().view(torch.uint8).numpy().tobytes()
            with open(file, "r+b" if self._logged else "wb") as out:
                # cut off what a killed run wrote after the last complete checkpoint
                out.truncate(self._logged * (len(content) // fresh))
                out.seek(0, os.SEEK_END)
                out.write(content)
            self._hash.update(content)
            self._saved, self._logged = self.added, self._logged + fresh
        shape = list(self.rows.shape[1:]) if self.added else []
        return {"added": self.added, "logged": self._logged, "shape": shape, "sha256": self._hash.hexdigest()}

    def load(self, file: Path, state: dict[str, Any], device: torch.device | str) -> None:
        """Restore the rows held when ``save`` returned ``state``, into an empty buffer.

        Raises:
            ConfigError: the file does not hold those rows.
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
                f"cannot resume: {file} no longer holds the {state['logged']} rows that the checkpoint beside it was "
                "saved with. Start over with artifacts.reuse=false"
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
            # double the size, so that growing copies each row once on average
            size = self.capacity or max(wanted, 2 * len(self))
            grown = torch.empty(size, *rows.shape[1:], dtype=self.dtype, device=rows.device)
            if self._held is not None:
                grown[: len(self)] = self.rows
            self._held = grown
        places = torch.arange(self.added, self.added + n, device=rows.device) % len(self._held)
        self._held.index_copy_(0, places, rows)
        self.added += n
