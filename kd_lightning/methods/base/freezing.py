"""A network that gradients cross without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
