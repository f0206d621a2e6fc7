"""Checks the settings of a node against the signature of its ``_target_``."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections import abc
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import nn

from kd_lightning.config.node import UNKNOWN, located
from kd_lightning.config.spelling import suggest
from kd_lightning.core.user_code import code_of, folder_digest

GIVEN = {"student", "teacher", "task", "store", "save_dir", "params", "optimizer"}
"""Arguments that the run supplies."""


SETTLED: dict[str, Any] = {
    "trainer.precision": Literal["auto"],
    "trainer.sync_batchnorm": Literal["auto"],
    "trainer.global_batch_losses": bool,
}
"""Settings of a trainer that the run itself reads, besides Lightning's, by the end of the key."""


def signature_faults(path: str, node: Mapping[str, Any], everywhere: list[str]) -> Iterator[str]:
    """One line for each setting that the target does not have, that has a wrong type, or that is missing.

    Args:
        path: key of the node.
        node: ``_target_`` and its settings.
        everywhere: all dotted keys of the composition, for hints.
    """
    try:
        target = located(node["_target_"])
    except ImportError as error:
        yield f"{path}._target_: cannot import {node['_target_']} ({error})"
        return
    try:
        parameters, hints, open_ended = _parameters(target)
    except (ValueError, TypeError):
        return  # a builtin without a signature
    given = {k: v for k, v in node.items() if not (isinstance(k, str) and k.startswith("_"))}
    name = getattr(target, "__qualname__", str(target))
    strange = [key for key in given if key not in parameters and not _settled(f"{path}.{key}")]
    many = len(strange) > 1 and not open_ended and code_of(target, node["_target_"]) is not None
    if many:  # the settings of another class that it was put in the place of
        yield (
            f"{path}: {name} has none of the settings {', '.join(strange)}, which are another class's: a network of "
            f"your own is one file, my_conf/network/mine.yaml with _target_: {node['_target_']}, and then "
            "--config-dir my_conf teacher=mine or student=mine"
        )
    for key, value in given.items():
        full = f"{path}.{key}"
        if many and key in strange:
            continue
        ours = next((hint for end, hint in SETTLED.items() if full.endswith(end)), None)
        if ours is not None and fits(value, ours):
            continue
        if key not in parameters and ours is not None:
            yield wrong(full, value, ours)
        elif key not in parameters:
            if not open_ended:
                there = {k for k in parameters if k not in GIVEN or k in given}
                yield f"{full}: {name} has no such setting{suggest(full, there, everywhere)}"
        elif not fits(value, hints.get(key, Any)):
            yield wrong(full, value, hints[key])
    if node.get("_partial_") or "_args_" in node:
        return
    certain = inspect.signature(target).parameters if open_ended else parameters  # it may fill in what it forwards
    for key, parameter in certain.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        expected = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if expected and key not in given and key not in GIVEN:
            yield f"{path}.{key}: required by {name}, give it with +{path}.{key}=..."


def _settled(full: str) -> bool:
    return any(full.endswith(end) for end in SETTLED)


def versions(node: Any) -> dict[str, int]:
    """The ``version`` of every class that a composition names, where it has one: ``{target: version}``.

    Args:
        node: nested dicts and lists.
    """
    found: dict[str, int] = {}
    if isinstance(node, dict):
        own = getattr(located(node["_target_"]), "version", None) if "_target_" in node else None
        found = {node["_target_"]: own} if isinstance(own, int) else {}
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        found |= versions(value)
    return dict(sorted(found.items()))


def own_code(node: Any) -> dict[str, str]:
    """What the targets of a composition outside this package run, and read from the folders that they are given.

    Args:
        node: nested dicts and lists.

    Returns:
        target -> digest of its code, and folder -> digest of its files; empty for targets of this package only.
    """
    found: dict[str, str] = {}
    if isinstance(node, dict) and "_target_" in node:
        target = node["_target_"]
        code = code_of(located(target), target)
        found = {target: code} if code is not None else {}
        if not target.startswith(f"{__name__.partition('.')[0]}."):
            found |= {folder: folder_digest(folder) for folder in _folders(node)}
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        found |= own_code(value)
    return dict(sorted(found.items()))


def _folders(node: Any) -> Iterator[str]:
    if isinstance(node, str) and node not in ("", ".", "..", "/") and os.path.isdir(os.path.expanduser(node)):
        yield os.path.expanduser(node)
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _folders(value)


def _parameters(target: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any], bool]:
    """Parameters and type hints by name; ``**kwargs`` of a class is followed to its base classes.

    Where it ends at a class that is not of this package, nobody knows what it takes; nor where a foreign wrapper takes
    anything.
    """
    layers = (
        [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    )
    ours = __name__.partition(".")[0]
    parameters: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for layer in layers:
        own = {k: p for k, p in inspect.signature(layer).parameters.items() if k != "self"}
        parameters = {**{k: p for k, p in own.items() if p.kind is not p.VAR_KEYWORD}, **parameters}
        try:
            hints = {**typing.get_type_hints(layer), **hints}
        except Exception:
            hints = {**getattr(layer, "__annotations__", {}), **hints}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            foreign = getattr(layer, "__module__", ours).partition(".")[0] != ours
            return parameters, hints, foreign and (layer is not layers[0] or _takes_anything(layer, target))
    return parameters, hints, True


def _takes_anything(function: Any, target: Any) -> bool:
    """Whether a wrapped function of code that we do not depend on takes more settings than the one inside names."""
    outer = inspect.signature(function, follow_wrapped=False).parameters.values()
    wraps = hasattr(function, "__wrapped__") and any(p.kind is p.VAR_KEYWORD for p in outer)
    return wraps and code_of(target) is not None


LISTS = (list, tuple, set, abc.Sequence, abc.Iterable, abc.Collection)
DICTS = (dict, abc.Mapping, abc.MutableMapping)
SCALARS = (bool, int, float, str, None, types.NoneType)


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value matches a type hint; true in doubt."""
    if value is UNKNOWN or hint in (Any, object) or isinstance(hint, (str, typing.TypeVar)):
        return True
    kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in args)
    if kind is Literal:
        return any(value == option and type(value) is type(option) for option in args)
    if kind in SCALARS:
        if kind is float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        return type(value) is (types.NoneType if kind is None else kind)
    if isinstance(value, dict) and "_target_" in value:
        return True
    if kind in LISTS:
        options = [option for option in args if option is not ...]
        return isinstance(value, list) and all(
            not options or any(fits(item, option) for option in options) for item in value
        )
    if kind in DICTS or typing.is_typeddict(kind):
        return isinstance(value, dict)
    if isinstance(value, str):
        return kind is not abc.Callable and not (inspect.isclass(kind) and issubclass(kind, nn.Module))
    return isinstance(value, (dict, list)) and kind is not abc.Callable


def wrong(path: str, value: Any, hint: Any) -> str:
    """The message for a value that does not match its type hint."""
    if isinstance(value, dict):
        shown = "a mapping"
    else:
        shown = repr(value) if isinstance(value, (str, list)) else {None: "null"}.get(value, str(value).lower())
    return f"{path}: expected {_hint_name(hint)}, got {shown}"


def _hint_name(hint: Any) -> str:
    kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Literal:
        return "one of " + ", ".join(map(str, args))
    if kind in (typing.Union, types.UnionType):
        options = [option for option in args if typing.get_origin(option) is not Literal]
        if literals := [v for o in args if typing.get_origin(o) is Literal for v in typing.get_args(o)]:
            options = [Literal[tuple(dict.fromkeys(map(str, literals)))], *options]
        return " or ".join(dict.fromkeys(_hint_name(option) for option in options))
    if kind in LISTS:
        inner = dict.fromkeys(_hint_name(option) for option in args if option is not ...)
        return "a list" + (f", each {' or '.join(inner)}" if inner else "")
    if kind in DICTS:
        return "a mapping"
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        types.NoneType: "null",
        abc.Callable: "{_target_: ..., _partial_: true}",
    }
    return names.get(kind) or f"{{_target_: ...}} of a {getattr(kind, '__name__', kind)}"


def at(plain: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, UNKNOWN where there is none."""
    node: Any = plain
    for key in path.split(".") if path else []:
        node = node.get(key, UNKNOWN) if isinstance(node, dict) else UNKNOWN
    return node


def as_dict(node: Any) -> dict[Any, Any]:
    """``node`` if it is a dict, else an empty dict."""
    return node if isinstance(node, dict) else {}
