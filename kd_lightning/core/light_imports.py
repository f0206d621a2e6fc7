"""Imports torchmetrics and Lightning without what they bring along at once, which takes seconds and which few runs use.

Of torchmetrics that is SciPy, Matplotlib and torchvision, for its plots and a few metrics; of Lightning the compiler of
torch, of which it asks only whether a module was compiled.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

HEAVY = ("scipy", "matplotlib", "torchvision")
USES_NONE = ("kd_lightning.", "torch.", "lightning.", "torchmetrics.")
"""Beginnings of targets whose code draws no torchmetrics plots."""
COMPILER = "torch._dynamo"


def import_lightly(targets: Iterable[str]) -> None:
    """Import torchmetrics and Lightning before anything else does.

    Does nothing where a composition names code of others, which may use what is left out.

    Args:
        targets: all dotted paths that the composition names.
    """
    if not all(target.startswith(USES_NONE) for target in targets):
        return
    if "torchmetrics" not in sys.modules:
        with _absent():
            import torchmetrics  # noqa: F401
    if "lightning" not in sys.modules and COMPILER not in sys.modules:
        with _uncompiled():
            import lightning  # noqa: F401


@contextmanager
def _absent() -> Iterator[None]:
    """Inside, torchmetrics takes the heavy libraries for absent."""
    imports: Any = import_module("lightning_utilities.core.imports")
    cache = imports.RequirementCache
    there, available = cache.__bool__, imports.package_available

    def answer(requirement: Any) -> bool:
        name = re.split(r"[^\w.-]", requirement.requirement or "", maxsplit=1)[0]
        return name not in HEAVY and there(requirement)

    try:
        cache.__bool__ = answer
        imports.package_available = lambda name: name not in HEAVY and available(name)
        yield
    finally:
        cache.__bool__, imports.package_available = there, available


class _IfLoaded(type):
    """Instances are those of the compiler's own class, once that is loaded."""

    def __instancecheck__(cls, instance: Any) -> bool:
        compiler = sys.modules.get(COMPILER)
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class OptimizedModule(metaclass=_IfLoaded):
    """Stands for the compiler's class of this name until the compiler is loaded."""


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Inside, whoever imports the compiler gets a module that holds only what Lightning asks of it."""
    standing_in: Any = types.ModuleType(COMPILER)
    standing_in.OptimizedModule = OptimizedModule
    standing_in.disable = lambda function, recursive=True, *, reason=None: function  # of code that is never compiled
    sys.modules[COMPILER] = standing_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is standing_in:
            del sys.modules[COMPILER]
