"""Finds a network's names among those of a weights file: wrappers, prefixes, and entries that are no weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

WRAPPERS = (
    *("student", "state_dict", "model_state_dict", "model", "net", "net_state_dict", "network", "weights", "params"),
    *("module", "teacher", "backbone", "state_dict_ema", "ema_state_dict", "model_ema", "ema"),
)
"""Keys under which tools put a state dict; of several the first counts."""
COUNTERS = ("total_ops", "total_params", "num_batches_tracked", "epoch", "step", "global_step", "n_averaged")
"""Last words of names that count something and weigh nothing."""
BESIDE = re.compile(r"criterion|loss|metric|accuracy|optim|sched|center|aux|distill|ema", re.IGNORECASE)
"""In the first words of names of what stands beside a network in training, such as ``criterion.weight``."""
DEEPEST = 4
"""Most parts of a prefix."""


def inside(content: Any, first: tuple[str, ...] = ()) -> Any | None:
    """The mapping inside a file's content that holds the tensors; None if it is the content itself.

    Args:
        content: what the file holds.
        first: keys to look under before all others.
    """
    if not isinstance(content, Mapping):
        return None
    for key in (*first, *WRAPPERS):
        if isinstance(content.get(key), Mapping) and _has_tensors(content[key]):
            return content[key]
    if any(isinstance(value, Tensor) for value in content.values()):
        return None
    found = [value for key, value in content.items() if key != "optimizer" and _has_tensors(value)]
    return found[0] if len(found) == 1 else None


def _has_tensors(content: Any, deep: int = 3) -> bool:
    if not isinstance(content, Mapping) or "param_groups" in content:
        return False
    return any(isinstance(v, Tensor) or (deep and _has_tensors(v, deep - 1)) for v in content.values())


def fitted(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors under the network's names, and the names of those that are no part of a network.

    Any prefix that most names share is taken off, compiled and parallel networks' names inside are, too. What is
    left out is a loss's or a counter's, never a layer beside the network's own.

    Args:
        found: as the file names them.
        wanted: the network's state dict.
    """
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    best = max((_renamed(found, strip, add) for strip in _prefixes(found, len(wanted)) for add in ("", "net.")),
               key=lambda c: len(c[0].keys() & wanted.keys()) - 0.001 * len(c[1]))  # fmt: skip
    tensors, others = best
    fresh = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    missing = wanted.keys() - tensors.keys() - fresh.keys() - {"mean", "std"}
    if missing or any(tensors[name].shape != wanted[name].shape for name in tensors.keys() & wanted.keys()):
        return tensors | {name: found[name] for name in others if name not in tensors}, []
    tops = {_top(name) for name in wanted} - {"net"}
    extra = [
        name
        for name in tensors.keys() - wanted.keys()
        if _last(name) in COUNTERS or (_top(name) not in tops and BESIDE.search(_top(name)))
    ]
    kept = {name: value for name, value in tensors.items() if name not in extra}
    others = [name for name in others if name not in kept]
    return {**{name: value for name, value in fresh.items() if name not in kept}, **kept}, sorted(
        [*(name if name in found else name.removeprefix("net.") for name in extra), *others]
    )


def translated(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    published: Iterable[tuple[str, str]] | Mapping[str, str],
) -> Mapping[str, Tensor]:
    """The file's tensors in the network's words if that makes more names the network's own, else as they are.

    Args:
        found: as the file names them.
        wanted: the network's state dict.
        published: patterns of names in others' files, and what stands for each here; or every such
            name and its own, which is empty for what the network leaves out.
    """
    if isinstance(published, Mapping):
        plain = {name.removeprefix("module."): value for name, value in found.items()}
        if len(plain.keys() & published.keys()) <= len(found.keys() & wanted.keys()):
            return found
        named = {published.get(name, name): value for name, value in plain.items()}
        return {name: _shaped(value, wanted.get(name)) for name, value in named.items() if name}
    ours = {}
    for name, value in found.items():
        for pattern, word in published:
            name = re.sub(pattern, word, name)
        ours[name] = value
    known = {name.removeprefix("net.") for name in wanted}
    return ours if len(ours.keys() & known) > len(found.keys() & known) else found


def _shaped(value: Tensor, wanted: Tensor | None) -> Tensor:
    """One number is one with or without dimensions."""
    return value.reshape(wanted.shape) if wanted is not None and value.numel() == wanted.numel() == 1 else value


def _prefixes(found: Mapping[str, Tensor], wanted: int) -> list[str]:
    starts = {"": len(found)}
    for name in found:
        parts = name.split(".")
        for deep in range(1, min(len(parts), DEEPEST + 1)):
            prefix = ".".join(parts[:deep]) + "."
            starts[prefix] = starts.get(prefix, 0) + 1
    return [prefix for prefix, count in starts.items() if count >= min(len(found), wanted) / 2]


def _renamed(found: Mapping[str, Tensor], strip: str, add: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors with ``strip`` taken off and ``add`` put before their names, and the names without ``strip``."""
    keep = ("mean", "std") if add else ()
    plain = {name.removeprefix(strip): v for name, v in found.items() if name.startswith(strip)}
    others = [name for name in found if not name.startswith(strip)]
    for name in [name for name in others if name in ("mean", "std")]:  # a normalisation beside the network
        plain[name] = found[name]
        others.remove(name)
    return {name if name in keep else add + name: value for name, value in plain.items()}, others


def _top(name: str) -> str:
    return name.removeprefix("net.").partition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
