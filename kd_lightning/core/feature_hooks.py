"""Intermediate tensors by module path, recorded by hooks during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def capture(
    net: nn.Module, *, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ()
) -> Iterator[dict[str, Tensor]]:
    """Record inputs and outputs of named modules during the forward passes inside the block.

    Compiled networks run in eager mode there, because compiled code does not call hooks. In a network with modules that
    work in place, copies are recorded, because such a module overwrites what lies beside it.

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
    copied = any(getattr(module, "inplace", False) for module in modules.values())

    def keep(path: str) -> Callable[[Tensor], None]:
        return lambda value: taps.__setitem__(path, value.clone() if copied else value)

    handles = [hook(modules[path], "input", keep(path)) for path in inputs]
    handles += [hook(modules[path], "output", keep(path)) for path in outputs]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield taps
    finally:
        for handle in handles:
            handle.remove()


def hook(module: nn.Module, side: str, keep: Callable[[Tensor], None]) -> RemovableHandle:
    """Hand what a module gets (``side`` is ``input``) or returns (``output``) to ``keep`` in every forward pass."""
    if side == "input":
        return module.register_forward_pre_hook(lambda _module, args: keep(args[0]))
    return module.register_forward_hook(lambda _module, _args, output: keep(output))
