"""Freezing of a network for a phase of a round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(net: nn.Module, *, in_eval: bool = False) -> Iterator[None]:
    """Inside the ``with`` block, gradients pass through ``net``, and those of its weights are not computed.

    Args:
        net: a network.
        in_eval: also keep it in evaluation mode, so that its batch-norm statistics do not change.
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
