"""A class with its settings: plain data that cannot change, from which the object is built."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from kd_lightning.config.overrides import nearest
from kd_lightning.store.artifacts import digest

HOW = ("_partial_", "_args_", "_convert_")
"""Keys beside the settings that say how a node is built; what it is given is of Python's own types in any case."""


class Unknown:
    """Stands where a value is missing or cannot be computed, which is a fault already noted."""


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
        """The mapping that describes it, in dicts and lists of its own."""
        return {"_target_": self.target, **thaw(self.settings)}

    def digest(self) -> str:
        """Of target and settings, in whatever order they stand."""
        return digest(self.plain())

    def replace(self, **settings: Any) -> Node:
        """The same with some settings replaced or added."""
        return replace(self, settings=freeze({**self.settings, **settings}))

    def without(self, *names: str) -> Node:
        """The same with some settings left out."""
        return replace(self, settings=freeze({k: v for k, v in self.settings.items() if k not in names}))

    def build(self, **given: Any) -> Any:
        """Call the class with its settings, inner nodes built before it, and with what is given.

        Dicts and lists are fresh ones. A node with ``_partial_: true`` becomes a function that waits for the rest of
        its arguments.
        """
        call: Callable[..., Any] = located(self.target)
        args = [_built(value) for value in self.settings.get("_args_", ())]
        settings = {key: _built(value) for key, value in self.settings.items() if key not in HOW} | given
        return partial(call, *args, **settings) if self.settings.get("_partial_") else call(*args, **settings)

    def requirements(self) -> frozenset[str]:
        """What the class ``needs`` as it is set; nothing if it does not say."""
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
    """Mappings that cannot be changed in place of dicts, tuples in place of lists, all the way down."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value


def thaw(value: Any) -> Any:
    """Dicts and lists again, as JSON has them; dataclasses become dicts of what they are compared by."""
    if isinstance(value, Node):
        return value.plain()
    if is_dataclass(value):
        return {each.name: thaw(getattr(value, each.name)) for each in fields(value) if each.compare}
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, list | tuple) else value


def located(target: str) -> Any:
    """What ``_target_`` names.

    Raises:
        ImportError: there is no such thing, in words; an error inside a module keeps its own type and traceback.
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
