"""Whose a module is, and digests of the source of modules that are somebody's own.

A module counts as somebody's own if it lies neither in Python, nor in this package, nor in an installed distribution.
Of installed distributions those that this package does not depend on count by the files that they recorded.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import re
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]

_READ: dict[str, tuple[Any, str]] = {}
"""Name of a module -> its spec and the digest of its source when it was first seen: the code that this process runs."""


def prefixes(path: str) -> list[str]:
    """A dotted path and all that begin it: ``a``, ``a.b``, ``a.b.c``."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def short(parts: Iterable[str | bytes]) -> str:
    """First 12 hex digits of a hash of the parts, in their order."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
        total.update(b"\n")
    return total.hexdigest()[:12]


def interactive(module: types.ModuleType) -> bool:
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


def owned(module: types.ModuleType) -> bool:
    """Whether a module is somebody's own: a file that belongs to no installed package."""
    file = getattr(module, "__file__", None)
    if file is None or (real := os.path.realpath(file)).startswith(_not_owned()):
        return False
    deep = module.__name__.count(".") + (Path(real).name == "__init__.py")
    return not _installs(str(Path(real).parents[deep]))


@functools.cache
def _installs(folder: str) -> bool:
    """Whether packages are installed into a folder of ``sys.path``, as by ``pip install --target``."""
    return any(Path(folder).glob("*.dist-info"))


def sources(module: types.ModuleType) -> dict[str, str]:
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
    return there if there is not None and owned(there) else None


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
            yield from prefixes(name)


@functools.cache
def distribution(top: str) -> str | None:
    """Digest of what an installed distribution recorded of its files; None for one that this package depends on."""
    if top in sys.stdlib_module_names or top in (PACKAGE, "hydra_plugins"):
        return None
    names = [top] if _version(top) else metadata.packages_distributions().get(top, [])
    if not names or _plain(names[0]) in _dependencies():
        return None
    recorded = metadata.distribution(names[0]).read_text("RECORD") or ""
    lines = [line for line in recorded.splitlines() if not re.search(r"\.dist-info/|\.pyc,", line)]
    return short([names[0], _version(names[0]), *sorted(lines)])


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
