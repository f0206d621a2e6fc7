"""Overrides below a reference: ``method.optimizer.lr=0.01`` where ``method.optimizer`` is ``${data.recipe.optimizer}``.

The place of the reference gets a copy of what it refers to, which the override then changes: what else refers to the
same stays as it is. Such overrides are applied last, so that the copy has the values of the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

Apply = Callable[[list[Any], DictConfig], None]


def register() -> None:
    """Let Hydra, and thereby every launcher and sweeper, apply overrides below references."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    own = ConfigLoaderImpl._apply_overrides_to_config
    if not isinstance(own, partial):
        ConfigLoaderImpl._apply_overrides_to_config = staticmethod(partial(_applied, own))  # type: ignore[method-assign]


def _applied(hydras: Apply, overrides: list[Any], cfg: DictConfig) -> None:
    below = [each for each in overrides if reference_above(cfg, each.key_or_group) is not None]
    hydras([each for each in overrides if each not in below], cfg)
    for override in below:
        while (place := reference_above(cfg, override.key_or_group)) is not None:
            if not _detached(*place, cfg):
                break
        hydras([override], cfg)


def reference_above(cfg: DictConfig, key: str) -> tuple[DictConfig | ListConfig, Any] | None:
    """The first node above a dotted key that is a ``${...}``: its parent, and its name there; None if there is none."""
    node: Any = cfg
    for name in _names(key)[:-1]:
        if isinstance(node, ListConfig):
            if not name.isdecimal() or int(name) >= len(node):
                return None
            place: Any = int(name)
        elif isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and name in node._content:  # type: ignore[operator]
            place = name
        else:
            return None
        raw = node._get_node(place)
        if raw is None:
            return None
        if raw._is_interpolation():
            return node, place
        node = raw
    return None


def _names(key: str) -> list[str]:
    return key.replace("[", ".").replace("]", "").split(".")


def _detached(parent: DictConfig | ListConfig, name: Any, cfg: DictConfig) -> bool:
    """Put a copy in place of a reference to a mapping; returns whether it could be read."""
    with suppress(OmegaConfBaseException):
        reference = str(parent._get_node(name)._value())  # type: ignore[union-attr]
        inside = reference[2:-1] if reference.count("${") == 1 and reference.endswith("}") else ""
        source: Any = OmegaConf.select(cfg, inside) if inside and ":" not in inside and inside[0] != "." else None
        if source is None:
            source = parent[name]
        if isinstance(source, DictConfig):
            plain: Any = OmegaConf.to_container(source, resolve=False)
            if any("${." in text for text in _texts(plain)):  # references by levels hold in their own place only
                plain = OmegaConf.to_container(source, resolve=True)
            with open_dict(cfg):
                parent[name] = copy.deepcopy(plain)
            return True
    return False


def _texts(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    for value in plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ():
        yield from _texts(value)
