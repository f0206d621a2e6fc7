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


class Enough(Exception):
    """As many backward passes as were wanted."""


class Trace:
    """Losses and moments of every backward pass, and the latents that were drawn before."""

    def __init__(self, replayed: list[Tensor] | None = None) -> None:
        self.losses: list[float] = []
        self.moments: list[float] = []
        self.drawn: list[Tensor] = []
        self.replayed = None if replayed is None else iter(replayed)

    def steps(self, passes: int) -> tuple[list[float], list[float]]:
        """Sums of the losses of each step's ``passes``, and seconds from step to step."""
        sums = [sum(self.losses[i : i + passes]) for i in range(0, len(self.losses), passes)]
        starts = self.moments[::passes]
        return sums, [b - a for a, b in pairwise(starts)]


@contextlib.contextmanager
def traced(trace: Trace, limit: int, first: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Note every backward pass until there are more than ``limit``; call ``first`` before the first one."""
    backward, grad, randn = torch.Tensor.backward, torch.autograd.grad, torch.randn

    def note(loss: Tensor) -> None:
        if not trace.losses:
            first()
        if len(trace.losses) == limit:
            raise Enough
        trace.losses.append(loss.item())
        trace.moments.append(time.perf_counter())

    def drawing(*size: Any, **settings: Any) -> Tensor:
        shape = tuple(settings.get("size") or (size[0] if isinstance(size[0], tuple) else size))
        if trace.replayed is None:
            trace.drawn.append(randn(*shape))
        else:
            rows: list[Tensor] = []
            while sum(map(len, rows)) < shape[0]:
                rows.append(next(trace.replayed))
            trace.drawn.append(torch.cat(rows).reshape(shape))
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
    before, to = set(sys.modules), torch.Tensor.to
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(sys, "path", [str(folder), *sys.path]))
        stack.enter_context(patch.dict(sys.modules, {name: MagicMock() for name in absent}))
        stack.enter_context(patch("torch.Tensor.cuda", lambda tensor, *_: tensor))
        stack.enter_context(patch("torch.nn.Module.cuda", lambda module, *_: module))
        stack.enter_context(
            patch("torch.Tensor.to", lambda x, *a, **k: x if a == ("cuda",) else to(x, *a, **k))  # type: ignore[arg-type]
        )
        stack.enter_context(patch("torchvision.datasets.mnist.MNIST", lambda *_, **__: [0]))
        stack.enter_context(contextlib.redirect_stdout(None))
        yield
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def copied(source: nn.Module, target: nn.Module) -> Any:
    """``target`` with the parameters of ``source``, in their order."""
    with torch.no_grad():
        for a, b in zip(source.parameters(), target.parameters(), strict=True):
            b.copy_(a)
    return target


class Logits(nn.Module):
    """An author's network without the features that it returns besides."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        output = self.net(x)
        return output[0] if isinstance(output, tuple) else output


def script(file: Path, arguments: list[str], trace: Trace, steps: int, teacher: Any) -> tuple[nn.Module, Any]:
    """Execute an author's script; returns its generator and student as they were in the first step."""
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(file)}
    kept: dict[str, Any] = {}

    def keep() -> None:
        kept.update({k: copy.deepcopy(names.get(k)) for k in ("generator", "net")})

    with (
        patch.object(sys, "argv", [file.name, *arguments]),
        patch("torch.load", lambda *_, **__: teacher),
        traced(trace, steps, keep),
    ):
        exec(compile(file.read_text(), str(file), "exec"), names)
    return kept["generator"], kept["net"]
