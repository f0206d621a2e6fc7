"""Somebody else's code under observation: what it draws, its losses, and when it takes its steps."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Enough(Exception):
    """As many backward passes as were wanted."""


class Trace:
    """Losses and moments of every backward pass, and the latents that were drawn before.

    Args:
        replayed: latents of an earlier trace, to be drawn again; fresh ones come behind the last of them.
    """

    def __init__(self, replayed: list[Tensor] | None = None) -> None:
        self.losses: list[float] = []
        self.moments: list[float] = []
        self.drawn: list[Tensor] = []
        self.replayed = None if replayed is None else iter(replayed)

    def sums(self, passes: int, steps: int) -> list[float]:
        """The loss of each of the first ``steps`` steps: the sum over its ``passes``."""
        return [sum(self.losses[i * passes : (i + 1) * passes]) for i in range(steps)]

    def seconds(self, passes: int, pause: int = 0) -> float:
        """Mean time of a step, the first left out; with ``pause`` also every step that begins another ``pause``."""
        starts = self.moments[::passes]
        taken = [b - a for i, (a, b) in enumerate(pairwise(starts)) if i and not (pause and (i + 1) % pause == 0)]
        return sum(taken) / len(taken)


@contextlib.contextmanager
def traced(trace: Trace, limit: int, first: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Note every backward pass and end before number ``limit`` is made; call ``first`` before the first one."""
    backward, grad, randn = torch.Tensor.backward, torch.autograd.grad, torch.randn

    def note(loss: Any) -> None:
        if not isinstance(loss, Tensor):  # a compiler's own, while it traces a network
            return
        if not trace.losses:
            first()
        trace.losses.append(loss.item())
        trace.moments.append(time.perf_counter())
        if len(trace.losses) == limit:
            raise Enough

    def drawing(*size: Any, **settings: Any) -> Tensor:
        shape = tuple(settings.get("size") or (size[0] if isinstance(size[0], tuple) else size))
        rows: list[Tensor] = []
        while trace.replayed is not None and sum(map(len, rows)) < shape[0]:
            rows.append(next(trace.replayed, randn(*shape)))
        trace.drawn.append(torch.cat(rows)[: shape[0]].reshape(shape) if rows else randn(*shape))
        return trace.drawn[-1].clone()

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch("torch.Tensor.backward", lambda loss, *a, **k: (note(loss), backward(loss, *a, **k))))
        stack.enter_context(patch("torch.autograd.grad", lambda loss, *a, **k: (note(loss), grad(loss, *a, **k))[1]))
        stack.enter_context(patch("torch.randn", drawing))
        stack.enter_context(contextlib.suppress(Enough))
        yield


@contextlib.contextmanager
def importable(folder: Path, *absent: str) -> Iterator[None]:
    """Modules of a checkout, on the CPU; those ``absent`` are stood in for, and all are forgotten afterwards."""
    before, to = dict(sys.modules), torch.Tensor.to
    sys.modules.update({name: MagicMock() for name in absent})
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(sys, "path", [str(folder), *sys.path]))
        stack.enter_context(patch("torch.Tensor.cuda", lambda tensor, *_: tensor))
        stack.enter_context(patch("torch.nn.Module.cuda", lambda module, *_: module))
        stack.enter_context(
            patch("torch.Tensor.to", lambda x, *a, **k: x if a == ("cuda",) else to(x, *a, **k))  # type: ignore[arg-type]
        )
        stack.enter_context(contextlib.redirect_stdout(None))
        try:
            yield
        finally:
            for name in {*sys.modules} - {*before} | {*absent}:
                known = vars(sys.modules[name])
                if name in absent or any(str(folder) in str(known.get(key)) for key in ("__file__", "__path__")):
                    del sys.modules[name]
            sys.modules.update({name: before[name] for name in absent if name in before})


class EmptySet(list):
    """A list that takes attributes."""

    transform: Any


def empty(*_: Any, **settings: Any) -> Any:
    """In place of a data set that nobody will read: one image, and the transform that was asked for."""
    data = EmptySet([0])
    data.transform = settings.get("transform")
    return data


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Everything in double precision, ``.float()`` as well: what still differs then is no rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch("torch.Tensor.float", lambda tensor: tensor.double()):
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def at_rates(factor: float) -> Iterator[None]:
    """Every learning rate times ``factor``: at small ones steps do not multiply what rounding did."""
    add = torch.optim.Optimizer.add_param_group

    def adding(optimizer: Any, group: Any) -> None:
        add(optimizer, group)
        optimizer.param_groups[-1]["lr"] *= factor

    with patch("torch.optim.Optimizer.add_param_group", adding):
        yield


@torch.no_grad()
def copied(source: nn.Module, target: nn.Module) -> Any:
    """``target`` with the parameters and batch-norm statistics of ``source``, in their order."""
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        b.copy_(a.reshape(b.shape))
    for net_a, net_b in zip(norms(source), norms(target), strict=True):
        for a, b in zip(net_a.buffers(), net_b.buffers(), strict=True):
            b.copy_(a)
    return target


def norms(net: nn.Module) -> list[_BatchNorm]:
    """Its batch norms."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def settled(net: nn.Module, channels: int = 3) -> Any:
    """A fresh network whose batch norms know its own activations, as a trained one's do; in eval mode."""
    for norm in norms(net):
        norm.momentum = 1.0
    net.train()(torch.empty(32, channels, 32, 32).normal_())
    for norm in norms(net):
        norm.momentum = 0.1
    return net.eval()


def script(file: Path, arguments: list[str], trace: Trace, limit: int, saved: dict[str, Any]) -> dict[str, Any]:
    """Execute an author's script, which loads what is in ``saved`` by file name.

    Returns:
        Its ``generator`` and ``net`` or ``student_net`` as they were in the first step.
    """
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(file)}
    kept: dict[str, Any] = {}

    def keep() -> None:
        kept.update({k: copy.deepcopy(names.get(k)) for k in ("generator", "net", "student_net")})

    with (
        patch.object(sys, "argv", [file.name, *arguments]),
        patch("torch.load", lambda path, **_: saved[Path(path).name]),
        traced(trace, limit, keep),
    ):
        exec(compile(file.read_text(), str(file), "exec"), names)
    return kept
