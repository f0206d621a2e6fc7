"""What ``trainer.precision=auto`` means on this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def fast_precision(accelerator: str = "auto") -> str:
    """``bf16-mixed`` where the hardware multiplies in bf16, else ``32-true``."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if platform.system() == "Linux":
        flags = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
        if "avx512_bf16" in flags or "amx_bf16" in flags:
            return "bf16-mixed"
    return "32-true"
