"""Weights whose names another version or library changed, matched by shape, place and order where only one way fits."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

from torch import Size, Tensor

from kd_lightning.networks.weight_names import COUNTERS

Parts = tuple[tuple[str, Size], ...]
"""The tensors of one layer: last word of the name, and shape."""


def renamed(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, str] | None:
    """The layers of a file under the names of a network's: ``{theirs: ours}``; None where several ways would fit.

    Layers of equal names are each other's. Of the others, two belong together if their tensors have equal last words
    and shapes and the numbers in their names are equal (``encoder.layer.3.`` and ``layers.3.``); of several alike,
    those that end in the same word or initial do (``query``, ``key`` and ``q_proj``, ``k_proj``). Where this does not
    tell, the order of definition decides, if all layers come in the same one and no two alike are neighbours.

    Args:
        found: as the file names them, the usual prefixes taken off.
        wanted: the network's state dict.
    """
    theirs, ours = _layers(found), _layers(wanted)
    same = {name for name in theirs.keys() & ours.keys() if theirs[name] == ours[name]}
    left = [{name: parts for name, parts in side.items() if name not in same} for side in (theirs, ours)]
    if not left[0] or sorted(left[0].values()) != sorted(left[1].values()):
        return None
    return _by_place(*left) or (_by_order(*left) if list(found) != sorted(found) else None)


def listed(names: Mapping[str, str]) -> list[str]:
    """Lines ``theirs -> ours``, one for all layers that differ only in their numbers."""
    return list(dict.fromkeys(re.sub(r"\b\d+\b", "*", f"{a} -> {b}") for a, b in names.items()))


def under_our_names(found: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors with their layers renamed."""
    return {".".join(filter(None, (names.get(_layer(k), _layer(k)), _word(k)))): value for k, value in found.items()}


def _layers(state: Mapping[str, Tensor]) -> dict[str, Parts]:
    layers: dict[str, list[tuple[str, Size]]] = {}
    for name, value in state.items():
        if _word(name) not in COUNTERS and name not in ("mean", "std"):
            layers.setdefault(_layer(name), []).append((_word(name), value.shape))
    return {name: tuple(sorted(parts)) for name, parts in layers.items()}


def _by_place(theirs: Mapping[str, Parts], ours: Mapping[str, Parts]) -> dict[str, str] | None:
    names: dict[str, str] = {}
    there, here = (_grouped({name: (_numbers(name), parts) for name, parts in side.items()}) for side in (theirs, ours))
    if there.keys() != here.keys():
        return None
    for place, alike in there.items():
        if (paired := _by_words(alike, here[place])) is None:
            return None
        names |= paired
    return names


def _by_words(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str] | None:
    """Pairs of names that end in the same word, or in words of the same initial, and of the one left on either side."""
    if len(theirs) != len(ours):
        return None
    names: dict[str, str] = {}
    for length in (None, 1):
        a, b = (_grouped({name: _word(name)[:length] for name in side}) for side in (theirs, ours))
        names |= {a[word][0]: b[word][0] for word in a if len(a[word]) == len(b.get(word, ())) == 1}
        theirs, ours = [n for n in theirs if n not in names], [n for n in ours if n not in names.values()]
    return None if len(theirs) > 1 else names | dict(zip(theirs, ours, strict=True))


def _by_order(theirs: Mapping[str, Parts], ours: Mapping[str, Parts]) -> dict[str, str] | None:
    if list(theirs.values()) != list(ours.values()) or not (_told_apart(theirs) and _told_apart(ours)):
        return None
    return dict(zip(theirs, ours, strict=True))


def _told_apart(layers: Mapping[str, Parts]) -> bool:
    """Whether no two neighbours are alike, but those that are numbered in their order."""
    pairs = list(layers.items())
    return all(
        a[1] != b[1] or (_unnumbered(a[0]) == _unnumbered(b[0]) and _digits(a[0]) < _digits(b[0]))
        for a, b in pairwise(pairs)
    )


def _grouped(keys: Mapping[str, Hashable]) -> dict[Hashable, list[str]]:
    groups: dict[Hashable, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault(key, []).append(name)
    return groups


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdecimal())


def _digits(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "", name)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _word(name: str) -> str:
    return name.rpartition(".")[2]
