"""Taps: places inside a network as a person writes them, checked before training and read in every forward pass."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from kd_lightning.core.feature_hooks import hook
from kd_lightning.errors import ConfigError

OUTPUT = "output"
"""The path of what the network itself returns."""


def find(net: nn.Module, path: str) -> tuple[str, str]:
    """The module at a path as a person writes it, and which side of it.

    Args:
        net: the bare network.
        path: names of modules with dots between them, ``layer1.0.relu``. A number may be negative, counted from the
            last: ``layer1.-1``. ``:input`` at the end means what the module gets, ``:output`` (or nothing) what it
            returns.

    Returns:
        The path with numbers from 0, and ``input`` or ``output``.

    Raises:
        ConfigError: there is no such module; the message names the nearest ones.
    """
    names, _, side = path.partition(":")
    if side not in ("", "input", "output"):
        raise ConfigError(f"{path}: expected {names}:input or {names}:output")
    module, found = net, list[str]()
    for name in names.split("."):
        children = dict(module.named_children())
        if name.startswith("-") and name[1:].isdecimal() and 0 < int(name[1:]) <= len(children):
            name = list(children)[int(name)]
        if name not in children:
            raise ConfigError(f"{type(net).__name__} has no {names}{_nearest(net, names, '.'.join(found))}")
        found.append(name)
        module = children[name]
    return ".".join(found), side or "output"


def _nearest(net: nn.Module, wrong: str, reached: str) -> str:
    """The end of a message about a wrong path: the nearest right ones, and what there is where it goes wrong."""
    paths = [path for path, _ in net.named_modules() if path]
    near = difflib.get_close_matches(wrong, paths, n=3)
    inside = net.get_submodule(reached) if reached else net
    there = [f"{reached}.{name}" if reached else name for name, _ in inside.named_children()]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    if not there:
        return f"{hint or ';'} {reached} has no parts"
    return f"{hint} It has {', '.join(there)}" if hint else f"; it has {', '.join(there)}"


class _Enough(Exception):
    """Ends a forward pass of which nothing more is wanted."""


class Taps:
    """Tensors inside a network, by path as :func:`find` reads it.

    A tap holds the value that was there, also beside a module that works in place: :meth:`measure` finds out which
    values are overwritten later, and those are copied. Compiled networks run in eager mode if there is a tap inside.

    Args:
        net: the bare network; its modules may be replaced later.
        paths: of the taps; ``output`` is the network's own output, and is no tap.

    Raises:
        ConfigError: a path is no module of ``net``; the message names the nearest ones.
    """

    def __init__(self, net: nn.Module, paths: Iterable[str]) -> None:
        self.net = net
        self.places = {path: find(net, path) for path in dict.fromkeys(paths) if path != OUTPUT}
        self.overwritten: set[str] = set()
        if any(isinstance(m, _DropoutNd) and m.inplace for m in net.modules()):  # which does nothing in eval mode
            self.overwritten = set(self.places)

    def measure(self, call: Callable[[], Tensor]) -> dict[str, tuple[int, ...]]:
        """Shapes of the taps and of ``output``, without the batch.

        Args:
            call: runs the network in eval mode, without gradients.

        Raises:
            ConfigError: a module is not run, or more than once, or what is there is no tensor.
        """
        times, before = dict.fromkeys(self.places, 0), dict[str, tuple[Tensor, int]]()

        def keep(path: str, value: Tensor) -> None:
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"{path}: there is a {type(value).__name__}, expected a tensor: choose a module inside"
                )
            times[path] += 1
            before[path] = value, value._version

        output = self._run(call, keep)
        assert output is not None
        for path, number in times.items():
            if number != 1:
                how = "is not run" if number == 0 else f"runs {number} times"
                raise ConfigError(
                    f"{path}: this module of {type(self.net).__name__} {how} in a forward pass, expected once: "
                    "choose a module beside it"
                )
        self.overwritten |= {path for path, (value, version) in before.items() if value._version != version}
        shapes = {path: tuple(value.shape[1:]) for path, (value, _) in before.items()}
        return shapes | {OUTPUT: tuple(output.shape[1:])}

    def run(self, call: Callable[[], Tensor], *, output: bool = True) -> dict[str, Tensor]:
        """The values at all taps, and ``output`` if it is wanted.

        Args:
            call: runs the network.
            output: whether its output is wanted; else the forward pass ends at the last tap.
        """
        found: dict[str, Tensor] = {}

        def keep(path: str, value: Tensor) -> None:
            found[path] = value.clone() if path in self.overwritten else value
            if not output and len(found) == len(self.places):
                raise _Enough

        if output:
            answer = self._run(call, keep)
            assert answer is not None
            found[OUTPUT] = answer
        elif self.places:
            self._run(call, keep)
        return found

    def _run(self, call: Callable[[], Tensor], keep: Callable[[str, Tensor], None]) -> Tensor | None:
        if not self.places:
            return call()
        handles = [
            hook(self.net.get_submodule(module), side, lambda value, path=path: keep(path, value))  # type: ignore[misc]
            for path, (module, side) in self.places.items()
        ]
        try:
            with torch.compiler.set_stance("force_eager"):
                return call()
        except _Enough:
            return None
        finally:
            for handle in handles:
                handle.remove()


def at(values: dict[str, Any], paths: str | Sequence[str] | None) -> Any:
    """The value at a path, the list of values at several, None for no path."""
    if paths is None or isinstance(paths, str):
        return None if paths is None else values[paths]
    return [values[path] for path in paths]
