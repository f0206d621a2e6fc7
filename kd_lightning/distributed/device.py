"""Where a fit runs, and in which precision it is fast there."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd_lightning.distributed.launch import placed


def device_of(trainer: Mapping[str, Any]) -> str:
    """Where a fit's batches are wanted.

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


def fast_precision(accelerator: str = "auto") -> str:
    """``bf16-mixed`` where the hardware multiplies in bf16, else ``32-true``."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if platform.system() == "Linux":
        flags = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
        if "avx512_bf16" in flags or "amx_bf16" in flags:
            return "bf16-mixed"
    return "32-true"
