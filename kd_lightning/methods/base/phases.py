"""Helpers for rounds in phases: resetting an optimiser, reinitialising weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def restart(optimizer: Any) -> None:
    """Reset moments and step counts of an optimiser or Lightning's wrapper of one; learning rates are kept."""
    getattr(optimizer, "optimizer", optimizer).state.clear()


def redraw(net: nn.Module, rng: torch.Generator) -> None:
    """Reinitialise weights and running statistics as PyTorch does, with a generator on the CPU."""
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        for layer in net.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
