"""A class with its settings: immutable plain data from which the object is built."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from kd_lightning.config.spelling import nearest
from kd_lightning.store.files import digest

HOW = ("_partial_", "_args_", "_convert_")
"""Keys that say how a node is built; ``_convert_`` has no effect, because values are plain Python in any case."""


class Unknown:
    """Placeholder for a value that is missing or cannot be computed, which is reported as a fault elsewhere."""


UNKNOWN = Unknown()


@dataclass(frozen=True)
class Node:
    """A class or function, and the settings it is called with.

    Args:
        target: its dotted path.
        settings: name -> value, immutable; mappings with a ``_target_`` of their own are nodes, too.
    """

    target: str
    settings: Mapping[str, Any]

    @staticmethod
    def of(plain: Any) -> Node | None:
        """The node that a mapping with ``_target_`` describes; None for anything else."""
        if not isinstance(plain, Mapping) or not isinstance(plain.get("_target_"), str):
            return None
        return Node(plain["_target_"], freeze({key: value for key, value in plain.items() if key != "_target_"}))

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]

    def __contains__(self, key: str) -> bool:
        return key in self.settings

    def get(self, key: str, default: Any = None) -> Any:
        """A setting, or ``default`` where there is none of that name."""
        return self.settings.get(key, default)

    def plain(self) -> dict[str, Any]:
        """The node as a mapping with ``_target_``, in new dicts and lists."""
        return {"_target_": self.target, **thaw(self.settings)}

    def digest(self) -> str:
        """Digest of target and settings, independent of the order of keys."""
        return digest(self.plain())

    def replace(self, **settings: Any) -> Node:
        """A copy with some settings replaced or added."""
        return replace(self, settings=freeze({**self.settings, **settings}))

    def without(self, *names: str) -> Node:
        """A copy without some of the settings."""
        return replace(self, settings=freeze({k: v for k, v in self.settings.items() if k not in names}))

    def build(self, **given: Any) -> Any:
        """Call the target with its settings, inner nodes built first, and with ``given``.

        Dicts and lists are new ones. A node with ``_partial_: true`` becomes a function of its other arguments.

        Raises:
            ImportError: the target does not exist.
        """
        call: Callable[..., Any] = located(self.target)
        args = [_built(value) for value in self.settings.get("_args_", ())]
        settings = {key: _built(value) for key, value in self.settings.items() if key not in HOW} | given
        return partial(call, *args, **settings) if self.settings.get("_partial_") else call(*args, **settings)

    def requirements(self) -> frozenset[str]:
        """What the class ``needs`` with these settings; empty if it declares nothing."""
        needs: Any = getattr(located(self.target), "needs", frozenset())
        if not callable(needs):
            return frozenset(needs)
        return frozenset(needs(**{k: thaw(v) for k, v in self.settings.items() if k not in HOW and v is not UNKNOWN}))


def _built(value: Any) -> Any:
    if (node := Node.of(value)) is not None:
        return node.build()
    if isinstance(value, Mapping):
        return {key: _built(item) for key, item in value.items()}
    return [_built(item) for item in value] if isinstance(value, tuple) else value


def freeze(value: Any) -> Any:
    """Replace dicts by read-only mappings and lists by tuples, recursively."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value


def thaw(value: Any) -> Any:
    """Replace mappings and tuples by dicts and lists, recursively; dataclasses by dicts of their compared fields.

    A field with ``unless`` in its metadata is left out where it has that value, as if it did not exist.
    """
    if isinstance(value, Node):
        return value.plain()
    if is_dataclass(value):
        kept = [f for f in fields(value) if f.compare and f.metadata.get("unless", f) is not getattr(value, f.name)]
        return {each.name: thaw(getattr(value, each.name)) for each in kept}
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, list | tuple) else value


def located(target: str) -> Any:
    """Import what ``_target_`` names.

    Raises:
        ImportError: it does not exist; the message says which part. An error inside a module keeps its own type.
    """
    try:
        return pkgutil.resolve_name(target)
    except Exception:
        module, _, name = target.rpartition(".")
        if not module:
            raise ImportError("expected package.module.Class") from None
        try:
            there = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and module.startswith(error.name):
                raise ImportError(f"there is no module {error.name}") from None
            raise
        public = [n for n, v in vars(there).items() if getattr(v, "__module__", "") == module]
        near = "".join(f"; did you mean {module}.{n}?" for n in nearest(name, public))
        raise ImportError(f"{module} has no {name}{near}") from None
