"""The device of a fit, and the precision that is fast on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd_lightning.distributed.gpu_slots import threads_per_job
from kd_lightning.distributed.launch import placed

FEW_PIXELS = 16 * 16
"""Of an image: steps on up to so many last as long, or less, on one thread as on several."""


def device_of(trainer: Mapping[str, Any]) -> str:
    """The device of a fit's batches, such as ``cuda:0``.

    Args:
        trainer: its settings.
    """
    wanted = trainer["accelerator"]
    if wanted in ("gpu", "cuda") or (wanted == "auto" and torch.cuda.is_available()):
        place = placed()
        local = place.local_rank if place else 0
        devices = trainer["devices"]
        return f"cuda:{devices[local] if isinstance(devices, list | tuple) else local}"
    return "cpu"


def spare_threads(height: int, width: int) -> None:
    """Compute with one thread where images have few pixels; ``OMP_NUM_THREADS`` decides where it is set."""
    if height * width <= FEW_PIXELS and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)


def room_for_another() -> bool:
    """Whether a second process with as many threads finds idle cores."""
    return 2 * torch.get_num_threads() <= threads_per_job(1)


def fast_precision(accelerator: str = "auto") -> str:
    """``bf16-mixed`` where the hardware multiplies in bf16, else ``32-true``."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if platform.system() == "Linux":
        flags = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
        if "avx512_bf16" in flags or "amx_bf16" in flags:
            return "bf16-mixed"
    return "32-true"
