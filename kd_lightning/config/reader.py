"""Turns a configuration into nested dicts and lists with every ``${...}`` resolved, and collects the faults."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from kd_lightning.config.node import UNKNOWN
from kd_lightning.config.spelling import suggest

Faults = dict[str, None]
"""An ordered set of lines."""


class Reader:
    """Reads configurations and collects the faults of their values.

    Args:
        everywhere: every dotted key of the configuration, for hints.

    Attributes:
        found: a line for each value that is missing or refers to nothing.
        echoes: key -> the key that the ``${...}`` at it refers to.
    """

    def __init__(self, everywhere: list[str]) -> None:
        self.everywhere = everywhere
        self.found: Faults = {}
        self.echoes: dict[str, str] = {}

    def read(self, node: Any, path: str = "") -> Any:
        """Nested dicts and lists; UNKNOWN where a value is missing or cannot be resolved."""
        if not isinstance(node, (DictConfig, ListConfig)):
            return node
        is_list = isinstance(node, ListConfig)
        keys: Any = range(len(node)) if is_list else node
        values = {}
        for key in keys:
            full = f"{path}[{key}]" if is_list else f"{path}.{key}" if path else str(key)
            # main repeats other keys
            values[key] = UNKNOWN if full == "main" else self.value(node, key, full)
        return list(values.values()) if is_list else values

    def value(self, node: Any, key: Any, full: str) -> Any:
        """The value at ``key``, resolved; UNKNOWN if it is missing or cannot be resolved.

        Args:
            node: the mapping or list that holds it.
            key: its key or index.
            full: its full dotted key.
        """
        raw: Any = node._get_node(key)
        if reference := re.fullmatch(r"\$\{(?:oc\.select:)?([\w.]+)(?:,.*)?\}", str(raw._value())):
            self.echoes[full] = _absolute(reference[1], full)
        try:
            return self.read(node[key], full)
        except MissingMandatoryValue:
            self.found[f"{full}: required, give it with {full}=..."] = None
        except InterpolationToMissingValueError:
            pass  # reported where it is missing
        except OmegaConfBaseException as error:
            problem = self._reason(error)
            if not any(line.endswith(problem) for line in self.found):  # others may refer to the same
                self.found[f"{full}: {problem}"] = None
        return UNKNOWN

    def _reason(self, error: OmegaConfBaseException) -> str:
        text = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
        if isinstance(error, InterpolationKeyError) and (key := re.search("'(.*)'", text)):
            return f"${{{key[1]}}} refers to nothing{suggest(key[1], [], self.everywhere)}"
        return text


def _absolute(reference: str, at: str) -> str:
    """The key that a reference stands for; leading dots count levels up from the key ``at`` where it stands."""
    key = reference.lstrip(".")
    levels = at.split(".")
    ups = len(reference) - len(key)
    return ".".join([*levels[: len(levels) - ups], key]) if ups else key
