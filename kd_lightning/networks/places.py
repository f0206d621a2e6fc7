"""Names for places inside a network, so that one setting of a distillation term fits any of ours.

``@blocks`` the outputs of a network's stages, ``@before`` those values before the last activation, ``@stem`` the output
of the first layers, ``@map`` what its last pooling gets, ``@pooled`` the features that its head gets, ``@head`` what
that returns. ``@blocks.0`` is the first of them, ``@blocks.-1`` the last.

A network has a method ``places()`` that returns the first three as lists of taps; ``@pooled`` and ``@head`` every
network has, ``@map`` those with a module called pool or avgpool.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from kd_lightning.errors import ConfigError
from kd_lightning.networks import head_of


def spread(net: nn.Module, taps: str | Sequence[str] | None) -> Any:
    """Taps with the names of places replaced by the paths of a network.

    Args:
        net: the bare network.
        taps: a tap, several or none; other paths stay as they are.

    Returns:
        A tap, a list of taps or None: a name of several places becomes a list, also inside a list.

    Raises:
        ConfigError: the network has no place of that name.
    """
    if taps is None or (isinstance(taps, str) and not taps.startswith("@")):
        return taps
    if isinstance(taps, str):
        found = _found(net, taps)
        return found[0] if len(found) == 1 else found
    return [path for tap in taps for path in (_found(net, tap) if tap.startswith("@") else [tap])]


def pool_of(net: nn.Module) -> str:
    """Path of the pooling between a network's last maps and its head.

    Raises:
        ValueError: it has no module called pool or avgpool.
    """
    children = [name for name, _ in net.named_children() if name in ("pool", "avgpool")]
    if not children:
        raise ValueError(f"{type(net).__name__} has no module pool or avgpool after its last maps")
    return children[-1]


def _found(net: nn.Module, tap: str) -> list[str]:
    """The paths of a place, ``@NAME`` or ``@NAME.NUMBER``."""
    name, _, number = tap[1:].partition(".")
    there: dict[str, list[str]] = net.places() if hasattr(net, "places") else {}  # type: ignore[operator]
    there = {**there, "pooled": [f"{head_of(net)}:input"], "head": [head_of(net)]}
    with suppress(ValueError):
        there["map"] = [f"{pool_of(net)}:input"]
    if name not in there:
        known = ", ".join(f"@{each}" for each in there)
        raise ConfigError(f"{type(net).__name__} names no place {tap}; it has {known}, and the paths of its modules")
    try:
        return there[name] if not number else [there[name][int(number)]]
    except (ValueError, IndexError):
        raise ConfigError(
            f"{tap}: @{name} of {type(net).__name__} are {len(there[name])}, numbered from 0, or from the last by -1"
        ) from None
