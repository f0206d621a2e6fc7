"""Weights from files: safetensors, or torch files that hold tensors alone."""

from __future__ import annotations

import difflib
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_lightning.errors import TeacherError
from kd_lightning.store.artifacts import refuse_format

_WRAPPERS = ("student", "state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("", "net.", "module.", "_orig_mod.", "student.", "student.net.", "model.")


def read_weights(path: str | Path, *, inside: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, unwrapped from the usual ``{"state_dict": ...}``.

    Args:
        path: safetensors or torch file.
        inside: which of several state dicts, where a file has them under names of its own.

    Raises:
        TeacherError: no such file, truncated or corrupt, holds more than tensors, or holds none.
        VersionError: a file of ours, in another format.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise TeacherError(f"weights: there is no file {path}. Give teacher.weights=FILE, or null to train one")
    try:
        with path.open("rb") as file:
            safe = file.read(9)[8:] == b"{" or path.suffix == ".safetensors"
        with warnings.catch_warnings(action="ignore"):  # torch's guesses about files that are not its own
            content: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise TeacherError(
                f"weights: {path} holds more than tensors ({refused[1]}). Such files can run code and are refused: "
                "save net.state_dict() instead"
            ) from error
        raise _corrupt(path, error) from error
    except (safetensors.SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise _corrupt(path, error) from error
    if (version := _version(path, content, safe)) is not None:
        refuse_format(version, path, "use the version that wrote it")
    wrappers = _WRAPPERS if inside is None else (inside, *_WRAPPERS)
    while isinstance(content, Mapping) and (inner := next((k for k in wrappers if _holds_tensors(content, k)), None)):
        content = content[inner]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise TeacherError(f"weights: {path} holds no state dict: expected a mapping from names to tensors")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _version(path: Path, content: Any, safe: bool) -> int | None:
    """The format that a file of ours gives; others give none."""
    if not safe:
        found = content.get("format_version") if isinstance(content, Mapping) else None
        return found if isinstance(found, int) else None
    with safe_open(path, framework="pt") as file:
        found = (file.metadata() or {}).get("format_version", "")
    return int(found) if found.isdecimal() else None


def _corrupt(path: Path, error: Exception) -> TeacherError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return TeacherError(f"weights: {path} is truncated, corrupt or no weights at all ({reason[:120]}). Copy it again")


def _holds_tensors(content: Mapping[str, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Load a file into ``net`` strictly, whatever usual prefix its names carry.

    Args:
        net: a module, or a :class:`~kd_lightning.networks.normalized.Normalized` one; a file without statistics
            leaves those of the wrapper.
        path: safetensors or torch file.

    Raises:
        TeacherError: names or shapes differ; lists them with the nearest right one.
    """
    found = read_weights(path)
    wanted = net.state_dict()
    statistics = {k: v for k, v in wanted.items() if k in ("mean", "std")}
    candidates = [_renamed(found, strip, add) for strip in _PREFIXES for add in ("", "net.")]
    best = max(candidates, key=lambda c: len(c.keys() & wanted.keys()))
    best = statistics | best
    refuse_misfits(best, wanted, path, into=_name(net))
    net.load_state_dict(best)


def refuse_misfits(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path, *, into: str, shown: int = 12
) -> None:
    """Refuse weights whose names or shapes are not those wanted.

    Raises:
        TeacherError: lists the first ``shown`` of what is missing, not wanted or of another shape, the names with the
            nearest one on the other side.
    """
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    reshaped = [name for name in sorted(found.keys() & wanted.keys()) if found[name].shape != wanted[name].shape]
    if not (problems := [*missing, *extra, *reshaped]):
        return
    lines = [f"{name}: missing{_nearest(name, extra or found, 'file')}" for name in missing[:shown]]
    lines += [f"{name}: not in the network{_nearest(name, missing or wanted, 'network')}" for name in extra[:shown]]
    lines += [
        f"{name}: shape {tuple(found[name].shape)}, the network has {tuple(wanted[name].shape)}"
        for name in reshaped[:shown]
    ]
    more = f"\n  ... {len(problems) - shown} more" if len(problems) > shown else ""
    swapped = "" if missing or extra else "All names are right: these are weights of another part, or of another size. "
    listed = "\n  ".join(lines[:shown])
    raise TeacherError(
        f"weights: {path} does not fit {into}:\n  {listed}{more}\n{swapped}Choose the network it was saved from"
    )


def _renamed(found: Mapping[str, Tensor], strip: str, add: str) -> dict[str, Tensor]:
    keep = ("mean", "std") if add else ()
    plain = {name.removeprefix(strip): value for name, value in found.items()}
    return {name if name in keep else add + name: value for name, value in plain.items()}


def _nearest(name: str, others: Iterable[str], owner: str) -> str:
    close = difflib.get_close_matches(name, list(others), n=1, cutoff=0.5)
    return f" (the {owner} has {close[0]})" if close else ""


def _name(net: nn.Module) -> str:
    return type(getattr(net, "net", net)).__name__
