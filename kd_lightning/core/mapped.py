"""Images in a file that is read as they are needed: a tensor whose pages leave memory again after use."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

_MAPS: WeakValueDictionary[int, np.memmap] = WeakValueDictionary()
"""The maps of tensors that are in use, by the address where they begin."""


def mapped(file: str | Path, shape: Sequence[int]) -> Tensor:
    """The content of a file as a uint8 tensor; views of it share the file, indexing copies into memory.

    Raises:
        OSError, ValueError: the file cannot be read, or has another length.
    """
    if (found := Path(file).stat().st_size) != math.prod(shape):
        raise ValueError(f"{found:,} bytes, expected {math.prod(shape):,}")
    pool = np.memmap(file, np.uint8, "c", shape=tuple(shape))  # copied on write: the file stays as it is
    images = torch.from_numpy(pool)
    _MAPS[images.data_ptr()] = pool
    return images


def _map_of(images: Tensor | np.ndarray) -> np.memmap | None:
    if not _MAPS or (isinstance(images, Tensor) and images.device.type != "cpu"):
        return None
    at = images.data_ptr() if isinstance(images, Tensor) else images.__array_interface__["data"][0]
    return next((pool for start, pool in list(_MAPS.items()) if start <= at < start + pool.nbytes), None)


def is_mapped(images: Tensor) -> bool:
    """Whether a tensor is, or is a view of, one of :func:`mapped`."""
    return _map_of(images) is not None


def let_go(images: Tensor | np.ndarray) -> None:
    """Take the pages of a mapped tensor, or of an array that shares them, out of this process's memory; else nothing.

    They are read again where they are needed; the system keeps them in its own cache as long as there is room.
    """
    pool = _map_of(images)
    if pool is not None and hasattr(mmap, "MADV_DONTNEED"):
        pool._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def free_memory() -> int:
    """Bytes of memory that this process may still use, as far as the system says it."""
    found: list[int] = []
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
        group = Path("/sys/fs/cgroup")  # a container's own limit
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(stat["active_file"]) + int(stat["inactive_file"])  # given back where memory is short
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()) + cached)
    return max(0, min(found, default=1 << 62))
