"""Digests of code outside this package: edited code makes other results, so it is part of their key."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.core.module_sources import distribution, interactive, owned, prefixes, short, sources

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
INTERNAL = frozenset(vars(nn.Module())) - set(HOOKS)
SCALARS = (str, bytes, int, float, complex, bool, types.NoneType, types.EllipsisType, torch.dtype, torch.Size, range)


def code_of(thing: Any, path: str = "") -> str | None:
    """Digest of the code behind a class or function, with the modules of the same owner that it imports.

    Args:
        thing: the class or function.
        path: the dotted path it was found by, whose module may be another one than that which defines it.

    Returns:
        12 hex digits; None for what belongs to Python, this package or what it depends on.
    """
    thing = inspect.unwrap(getattr(thing, "__func__", thing))  # Model.from_pretrained has its class's code
    name = getattr(thing, "__module__", None) or type(thing).__module__
    found: dict[str, str] = {}
    for each in {name, *prefixes(path)}:
        module = sys.modules.get(each)
        if module is None or interactive(module):
            continue
        if owned(module):
            found |= sources(module)
        elif each == name and (recorded := distribution(each.partition(".")[0])) is not None:
            found[each.partition(".")[0]] = recorded
    parts = [f"{name} {digest}" for name, digest in sorted(found.items())]
    module = sys.modules.get(name)
    if module is not None and interactive(module):
        return short([*parts, *_behaviour(thing)])
    return short(parts) if parts else None


def folder_digest(folder: str | Path) -> str:
    """First 12 hex digits of a hash of the names and contents of all files in and below a folder."""
    total = hashlib.sha256()
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            file = Path(top) / name
            total.update(f"{file.relative_to(folder)}\0".encode())
            with suppress(OSError), file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()[:12]


def fingerprint(net: nn.Module) -> str:
    """First 12 hex digits of a hash of a network's code, settings and tensors: the same in another process."""
    return short(_behaviour(net))


def architecture(net: nn.Module | None) -> str | None:
    """The same without the values of its tensors: for a network whose weights are known by their file."""
    return None if net is None else short(_told(_Shapes(net), {}))


class _Shapes:
    """A network of which only the shapes of the tensors count."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net


def _behaviour(thing: Any) -> Iterator[str | bytes]:
    """Yield what determines how ``thing`` behaves: bytecode, constants, settings, tensors, whatever they refer to."""
    yield from _told(thing, {})


def _told(thing: Any, seen: dict[int, Any]) -> Iterator[str | bytes]:
    if isinstance(thing, SCALARS):
        yield repr(thing)
        return
    if isinstance(thing, Tensor):
        yield f"{tuple(thing.shape)} {thing.dtype}"
        if not (thing.is_meta or thing.is_quantized) and thing.layout == torch.strided:
            yield thing.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return
    if isinstance(thing, np.ndarray | np.generic):
        yield f"{thing.shape} {thing.dtype}"
        yield thing.tobytes() if not thing.dtype.hasobject else ""
        return
    if id(thing) in seen:
        yield "again"
        return
    seen[id(thing)] = thing  # kept, so that no other gets its id
    if isinstance(thing, types.ModuleType):
        yield f"module {thing.__name__}"
        if owned(thing) and not interactive(thing):
            yield from (f"{name} {digest}" for name, digest in sorted(sources(thing).items()))
    elif isinstance(thing, types.CodeType):
        yield from _told_code(thing, seen)
    elif isinstance(thing, types.FunctionType):
        yield from _told_function(thing, seen)
    elif isinstance(thing, types.MethodType | staticmethod | classmethod):
        yield from _told(thing.__func__, seen)
    elif isinstance(thing, property):
        yield from _told([thing.fget, thing.fset], seen)
    elif isinstance(thing, functools.partial):
        yield from _told([thing.func, thing.args, thing.keywords], seen)
    elif isinstance(thing, type):
        yield from _told_class(thing, seen)
    elif isinstance(thing, nn.Module):
        yield from _told_network(thing, seen, values=True)
    elif isinstance(thing, _Shapes):
        yield from _told_network(thing.net, seen, values=False)
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield f"key {key!r:.200}" if isinstance(key, SCALARS) else "key"
            yield from _told(value, seen)
    elif isinstance(thing, set | frozenset):
        yield from sorted(repr(item) for item in thing if isinstance(item, SCALARS))
    elif isinstance(thing, list | tuple):
        yield f"{len(thing)} items"
        for item in thing:
            yield from _told(item, seen)
    else:
        kind = type(thing)
        yield f"{kind.__module__}.{kind.__qualname__} {getattr(thing, '__qualname__', '')}"
        if _of_somebody(kind):
            yield from _told_class(kind, seen)
            yield from _told(dict(getattr(thing, "__dict__", {})), seen)


def _of_somebody(thing: Any) -> bool:
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    return module is not None and (interactive(module) or owned(module))


def _told_code(code: types.CodeType, seen: dict[int, Any]) -> Iterator[str | bytes]:
    yield code.co_code
    yield repr(code.co_names)
    for constant in code.co_consts:
        yield from _told(constant, seen)


def _told_function(function: types.FunctionType, seen: dict[int, Any]) -> Iterator[str | bytes]:
    yield f"{function.__module__}.{function.__qualname__}"
    if not _of_somebody(function):
        return
    yield from _told_code(function.__code__, seen)
    yield from _told([function.__defaults__, function.__kwdefaults__], seen)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield from _told(cell.cell_contents, seen)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield f"global {name}"
            yield from _told(function.__globals__[name], seen)


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


def _told_class(kind: type, seen: dict[int, Any]) -> Iterator[str | bytes]:
    yield f"class {kind.__module__}.{kind.__qualname__}"
    for each in kind.__mro__:
        if each is kind or id(each) not in seen:
            seen[id(each)] = each
            yield f"{each.__module__}.{each.__qualname__}"
            if not _of_somebody(each):
                continue
            module = sys.modules[each.__module__]
            if not interactive(module):
                yield from (f"{name} {digest}" for name, digest in sorted(sources(module).items()))
            for name, value in sorted(vars(each).items()):
                if name not in ("__module__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"):
                    yield name
                    yield from _told(value, seen)


def _told_network(net: nn.Module, seen: dict[int, Any], *, values: bool) -> Iterator[str | bytes]:
    for name, module in net.named_modules(remove_duplicate=False):
        seen[id(module)] = module
        yield f"{name}: {type(module).__module__}.{type(module).__qualname__}"
        if isinstance(module, torch.jit.ScriptModule):
            with suppress(Exception):  # a module without a forward method
                yield str(module.code)
            continue
        if _of_somebody(type(module)) and id(type(module)) not in seen:
            yield from _told_class(type(module), seen)
        for key, value in sorted(vars(module).items()):
            if key not in INTERNAL and not (key in HOOKS and not value):
                yield key
                if values or not isinstance(value, Tensor | np.ndarray):
                    yield from _told(list(value.values()) if key in HOOKS else value, seen)
    state = net.state_dict()
    for name, value in {**dict(net.named_buffers()), **state}.items():
        yield name
        if isinstance(value, Tensor):
            yield from _told(value, {}) if values else (f"{tuple(value.shape)} {value.dtype}",)
