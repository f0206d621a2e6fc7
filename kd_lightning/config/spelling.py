"""The nearest known name to one that is not known, for the end of a message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from os.path import commonprefix

from omegaconf import DictConfig

_ECHOES = ("controls.", "teacher.fit.")


def suggest(key: str, siblings: Iterable[str], everywhere: Iterable[str] = ()) -> str:
    """The end of a message: the nearest key at the same level, else similar ones elsewhere, else all siblings.

    Args:
        key: the wrong key, dotted.
        siblings: names that are valid in its place.
        everywhere: all dotted keys.
    """
    parent, _, leaf = key.rpartition(".")
    siblings = sorted(set(siblings))
    near = [f"{parent}.{name}" if parent else name for name in nearest(leaf, siblings)]
    if not near:
        word = key.partition(".")[0] + "."
        elsewhere = [p for p in everywhere if p != key and not p.startswith(f"{key}.")]
        places = [p for p in elsewhere if (p.startswith(word) if parent else not p.startswith(_ECHOES))]
        leaves = nearest(leaf, {p.rpartition(".")[2] for p in places}, cutoff=0.75)
        near = [p for p in places if p.rpartition(".")[2] in leaves]
        near = [p for p in near if p.rpartition(".")[0] == parent] or near[:3]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(siblings)}" if siblings else ""


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """The known name most similar to ``word``, or none; of equals the one with the longest common prefix."""

    def unlikeness(name: str) -> tuple[float, int, str]:
        return -SequenceMatcher(None, word, name).ratio(), -len(commonprefix([word, name])), name  # noqa: RUF071

    best = min((unlikeness(name) for name in known), default=(0.0, 0, ""))
    return [best[2]] if -best[0] >= cutoff else []


def dotted(cfg: DictConfig, path: str = "") -> Iterator[str]:
    """Yield every dotted key that is set, except those that repeat others and Hydra's own."""
    for key in map(str, cfg):
        full = f"{path}.{key}" if path else key
        if full == "main" or re.match(r"hydra\.(job_logging|hydra_logging|help|hydra_help|runtime)", full):
            continue
        yield full
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_interpolation() and not node._is_none():
            yield from dotted(node, full)
