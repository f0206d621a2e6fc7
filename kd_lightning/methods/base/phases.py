"""Helpers for rounds in phases: freezing a network, restarting an optimiser, redrawing weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def frozen(net: nn.Module, *, in_eval: bool = False) -> Iterator[None]:
    """Inside, gradients cross ``net`` without reaching its weights, which saves computing them.

    Args:
        net: a network.
        in_eval: keep it in evaluation mode meanwhile, so that its batch norms do not move either.
    """
    was_training = net.training
    learning = [p for p in net.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    if in_eval:
        net.eval()
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
        if in_eval:
            net.train(was_training)


def restart(optimizer: Any) -> None:
    """Forget moments and step counts of an optimiser, or of Lightning's wrapper of one; learning rates stay."""
    getattr(optimizer, "optimizer", optimizer).state.clear()


def redraw(net: nn.Module, rng: torch.Generator) -> None:
    """Weights and running statistics as PyTorch first draws them, from a generator on the CPU."""
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        for layer in net.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
