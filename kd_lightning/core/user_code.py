"""Digests of code outside this package: edited code makes other results, so it is part of their key.

A module counts as somebody's own if it lies neither in Python, nor in this package, nor in an installed distribution.
Of installed distributions those that this package does not depend on count by the files that they recorded.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import os
import re
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PACKAGE = __name__.partition(".")[0]
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
INTERNAL = frozenset(vars(nn.Module())) - set(HOOKS)
SCALARS = (str, bytes, int, float, complex, bool, types.NoneType, types.EllipsisType, torch.dtype, torch.Size, range)

_READ: dict[str, tuple[Any, str]] = {}
"""Name of a module -> its spec and the digest of its source when it was first seen: the code that this process runs."""


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
    for each in {name, *_prefixes(path)}:
        module = sys.modules.get(each)
        if module is None or _interactive(module):
            continue
        if _owned(module):
            found |= _sources(module)
        elif each == name and (recorded := _distribution(each.partition(".")[0])) is not None:
            found[each.partition(".")[0]] = recorded
    parts = [f"{name} {digest}" for name, digest in sorted(found.items())]
    module = sys.modules.get(name)
    if module is not None and _interactive(module):
        return _short([*parts, *_behaviour(thing)])
    return _short(parts) if parts else None


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


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
    return _short(_behaviour(net))


def architecture(net: nn.Module | None) -> str | None:
    """The same without the values of its tensors: for a network whose weights are known by their file."""
    return None if net is None else _short(_told(_Shapes(net), {}))


def _short(parts: Iterable[str | bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
        total.update(b"\n")
    return total.hexdigest()[:12]


def _interactive(module: types.ModuleType) -> bool:
    """Whether a module is a script or a notebook, of which only what is used counts."""
    return module.__name__ == "__main__" or (getattr(module, "__file__", None) is None and module.__spec__ is None)


@functools.cache
def _not_owned() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    places = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    package = Path(__file__).parents[1]
    places += [str(package), *(str(p.parent / "hydra_plugins") for p in (package, package / "plugins" / "x"))]
    return tuple(os.path.realpath(place) + os.sep for place in places)


def _owned(module: types.ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and not os.path.realpath(file).startswith(_not_owned())


def _sources(module: types.ModuleType) -> dict[str, str]:
    """Name -> digest of the source of a module and of all of the same kind that it imports, at whatever distance."""
    found: dict[str, str] = {}
    ahead = [module]
    while ahead:
        module = ahead.pop()
        if module.__name__ in found:
            continue
        file = Path(str(module.__file__))
        spec = module.__spec__
        known = _READ.get(module.__name__)
        content = b""
        with suppress(OSError):
            content = file.read_bytes()
        if known is None or known[0] is not spec:
            known = _READ[module.__name__] = spec, hashlib.sha256(content).hexdigest()
        found[module.__name__] = known[1]
        ahead += [there for name in _imported(content, module) if (there := _module(name)) is not None]
    return found


def _module(name: str) -> types.ModuleType | None:
    """A module of somebody's own, of which an unimported one is not run."""
    there = sys.modules.get(name)
    if there is None:
        with suppress(Exception):  # a parent may raise anything
            if (spec := importlib.util.find_spec(name)) is not None and spec.has_location:
                there = importlib.util.module_from_spec(spec)
    return there if there is not None and _owned(there) else None


def _imported(content: bytes, module: types.ModuleType) -> Iterator[str]:
    """Yield the names that may be modules in a module's imports, also those inside functions."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module or ""]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
        else:
            continue
        for name in names:
            yield from _prefixes(name)


@functools.cache
def _distribution(top: str) -> str | None:
    """Digest of what an installed distribution recorded of its files; None for one that this package depends on."""
    if top in sys.stdlib_module_names or top in (PACKAGE, "hydra_plugins"):
        return None
    names = [top] if _version(top) else metadata.packages_distributions().get(top, [])
    if not names or _plain(names[0]) in _dependencies():
        return None
    recorded = metadata.distribution(names[0]).read_text("RECORD") or ""
    lines = [line for line in recorded.splitlines() if not re.search(r"\.dist-info/|\.pyc,", line)]
    return _short([names[0], _version(names[0]), *sorted(lines)])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@functools.cache
def _dependencies() -> frozenset[str]:
    found, ahead = {"pytorch-lightning"}, ["kd-lightning"]
    while ahead:
        with suppress(metadata.PackageNotFoundError):
            for required in metadata.requires(ahead.pop()) or ():
                name = _plain(re.split(r"[^\w.-]", required, maxsplit=1)[0])
                if name not in found and "extra ==" not in required:
                    found.add(name)
                    ahead.append(name)
    return frozenset(found)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


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
        if _owned(thing) and not _interactive(thing):
            yield from (f"{name} {digest}" for name, digest in sorted(_sources(thing).items()))
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
    return module is not None and (_interactive(module) or _owned(module))


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
            if not _interactive(module):
                yield from (f"{name} {digest}" for name, digest in sorted(_sources(module).items()))
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
