"""Intermediate tensors by module path, recorded by hooks inside a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def capture(
    net: nn.Module, *, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ()
) -> Iterator[dict[str, Tensor]]:
    """Record inputs and outputs of named modules during the forward passes inside the block.

    Compiled networks run in eager mode there, because compiled code does not call hooks.

    Args:
        net: any module.
        inputs: paths of modules whose first input to record.
        outputs: paths of modules whose output to record.

    Yields:
        A dict from path to tensor, filled by each forward pass; the tensors keep their graph.

    Raises:
        ValueError: a path is no module of ``net``; the message lists the modules.
    """
    modules = dict(net.named_modules())
    if unknown := [path for path in (*inputs, *outputs) if path not in modules]:
        raise ValueError(f"no module {', '.join(unknown)} in the network; it has {', '.join(filter(None, modules))}")
    taps: dict[str, Tensor] = {}

    def keep_input(path: str) -> Callable[..., None]:
        return lambda _module, args: taps.__setitem__(path, args[0])

    def keep_output(path: str) -> Callable[..., None]:
        return lambda _module, _args, output: taps.__setitem__(path, output)

    handles = [modules[path].register_forward_pre_hook(keep_input(path)) for path in inputs]
    handles += [modules[path].register_forward_hook(keep_output(path)) for path in outputs]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield taps
    finally:
        for handle in handles:
            handle.remove()
