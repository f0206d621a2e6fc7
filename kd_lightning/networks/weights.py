"""Read and write weights: safetensors, or torch files that hold only tensors."""

from __future__ import annotations

import difflib
import json
import pickle
import pickletools
import pkgutil
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.serialization import safe_globals

from kd_lightning.core import strangers
from kd_lightning.core.file_format import refuse_format
from kd_lightning.core.notices import keep
from kd_lightning.errors import TeacherError
from kd_lightning.networks import weight_names
from kd_lightning.networks.renamed_weights import listed, renamed, under_our_names

LEGACY = 4
"""Number of pickles before the tensors in torch files of the old format, which are no zip files."""
LONGEST_WORD, MOST_PICKLE = 2000, 64_000_000
WRAPPED = 8
"""Most levels of nested mappings."""
CHUNK = 1 << 24
"""Values that are checked at a time."""
HARMLESS = ("argparse.Namespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "_codecs.encode")
"""Types beside tensors and plain data that training scripts leave in their files and that run nothing."""


def write_weights(state: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors, with equal bytes for equal content; the library's writer shuffles metadata.

    Raises:
        OSError: the file cannot be written.
    """
    content = save(dict(state))
    size = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8 : 8 + size])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.write(memoryview(content)[8 + size :])


def read_weights(path: str | Path, *, inside: str | None = None) -> dict[str, Tensor]:
    """Read the state dict in a file, unwrapped from the usual ``{"state_dict": ...}``.

    Args:
        path: safetensors or torch file.
        inside: key of the state dict, where a file holds several.

    Raises:
        TeacherError: the file is missing, truncated or corrupt, or holds no tensors or more than tensors.
        VersionError: kd_lightning wrote the file in another format.
    """
    path = Path(path).expanduser()
    if not (path.exists() or path.is_symlink()):
        raise TeacherError(f"weights: there is no file {path}. Give teacher.weights=FILE, or null to train one")
    said = f"weights: {path} is truncated, corrupt or no weights at all"
    with strangers.reading(path, error=TeacherError, said=said, advice="copy it again"):
        content, version = _content(path)
        if version is not None:
            refuse_format(version, path, "use the version that wrote it")
        for _ in range(WRAPPED):
            inner = weight_names.inside(content, () if inside is None else (inside,))
            if inner is None:
                return _tensors(content, path)
            content = inner
        raise ValueError(f"more than {WRAPPED} nested mappings")


def _content(path: Path) -> tuple[Any, int | None]:
    """The file's content, and its format if kd_lightning wrote it.

    Raises:
        TeacherError: it holds more than tensors.
        Exception: any error of the libraries that read it.
    """
    with path.open("rb") as file:
        safe = file.read(9)[8:] == b"{" or path.suffix == ".safetensors"
    if safe:
        with safe_open(path, framework="pt") as opened:
            said = (opened.metadata() or {}).get("format_version", "")
        return load_file(path), int(said) if said.isdecimal() else None
    refuse_program(path)
    try:
        content = read_torch(path)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise TeacherError(
                f"weights: {path} holds more than tensors ({refused[1]}). Such files can run code and are refused: "
                "save net.state_dict() instead"
            ) from error
        raise
    version = content.get("format_version") if isinstance(content, Mapping) else None
    return content, version if isinstance(version, int) else None


KNOWN = {
    "constants.pkl": ("a TorchScript network", "teacher=torchscript teacher.file={}"),
    "models/model.json": ("an exported network (.pt2)", "teacher=exported teacher.file={}"),
    "serialized_exported_program.json": ("an exported network (.pt2)", "teacher=exported teacher.file={}"),
}
"""End of a file's name in a zip -> what the zip is then, and what to type."""


def refuse_program(path: Path) -> None:
    """Refuse a whole network in place of weights, by its name.

    Raises:
        TeacherError: it is a TorchScript, exported or ONNX network; the message says what to type.
    """
    said = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
        said = next((what for end, what in KNOWN.items() if any(name.endswith(end) for name in names)), None)
    elif path.suffix == ".onnx":
        said = ("an ONNX network", "teacher=onnx teacher.file={}")
    if said is not None:
        raise TeacherError(f"weights: {path} is {said[0]}, not weights: {said[1].format(path)}")


def read_torch(path: Path) -> Any:
    """Plain data and tensors from a torch file, whose zip must not be compressed; tensors are mapped from the disk.

    Raises:
        Exception: torch raises many kinds of errors on damaged files.
    """
    mapped = strangers.refuse_inflating(path)
    _refuse_long_words(path, mapped)
    try:
        with warnings.catch_warnings(action="ignore"), safe_globals(_harmless()):  # torch guesses about other files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"WeightsUnpickler error: (.*)", str(error))  # after a long text about weights_only
        said = found[1] if found else str(error)
        raise pickle.UnpicklingError(said or "it holds more than tensors and plain data") from error


def _harmless() -> list[Any]:
    """What a torch file may hold besides tensors and plain data."""
    scalar = np.float64(0).__reduce__()[0]
    numpys = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFD"}]
    return [*map(pkgutil.resolve_name, HARMLESS), *numpys, *dtypes]


def _refuse_long_words(path: Path, zipped: bool) -> None:
    """Refuse long words in a torch file's pickles: when torch refuses a name, it takes quadratic time in its length.

    Raises:
        ValueError: a word is longer than any name, or the pickles are too large or missing.
    """
    with zipfile.ZipFile(path) if zipped else path.open("rb") as file:
        names = [n for n in file.namelist() if n.endswith("data.pkl")] if isinstance(file, zipfile.ZipFile) else []
        streams = [file.open(name) for name in names] if isinstance(file, zipfile.ZipFile) else [file] * LEGACY
        for stream in streams:
            for _, argument, place in pickletools.genops(stream):
                words = argument.split() if isinstance(argument, str) else ()
                if (place or 0) > MOST_PICKLE or any(len(word) > LONGEST_WORD for word in words):
                    raise ValueError("it holds more than tensors and plain data")


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise TeacherError(f"weights: {path} holds no state dict: expected a mapping from names to tensors")
    for name, value in content.items():
        if not isinstance(name, str):
            raise TeacherError(f"weights: {path} names a tensor {name!r:.40}, expected text: save net.state_dict()")
        if isinstance(value, Tensor) and (odd := odd_kind(value)):
            raise TeacherError(f"weights: {path}: {name} is a {odd} tensor, expected a plain one: save it again")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def odd_kind(value: Tensor) -> str:
    """Why a tensor is not a plain one with values, such as ``meta`` or ``sparse_coo``; empty if it is plain."""
    if value.is_meta or value.is_quantized or value.is_nested:
        return "meta" if value.is_meta else "quantized" if value.is_quantized else "nested"
    return "" if value.layout == torch.strided else str(value.layout).removeprefix("torch.")


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Load a file into ``net`` strictly, with or without the usual prefixes of names.

    A network may have ``published``, pairs of a pattern and what stands for it here: names in files of others.

    Args:
        net: a module, or a :class:`~kd_lightning.networks.normalized.Normalized` one, which keeps its statistics if the
            file has none.
        path: safetensors or torch file.

    Raises:
        TeacherError: names or shapes differ; the message lists them with the nearest valid name.
    """
    found = read_weights(path)
    wanted = net.state_dict()
    statistics = {k: v for k, v in wanted.items() if k in ("mean", "std")}
    published = getattr(getattr(net, "net", net), "published", ())
    fitting, left_out = weight_names.fitted(weight_names.translated(found, wanted, published), wanted)
    best = statistics | fitting
    if (names := renamed(best, wanted)) is not None:
        _say(f"weights: {path}: matched by shape and place: {'; '.join(listed(names))}")
        best, left_out = weight_names.fitted(under_our_names(best, names), wanted)
    refuse_misfits(best, wanted, path, into=_name(net))
    if left_out:
        few = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        _say(f"weights: {path}: left out {few}, which are no part of {_name(net)}")
    net.load_state_dict(best)


def _say(line: str) -> None:
    keep(line)
    print(line, file=sys.stderr, flush=True)


def refuse_misfits(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path, *, into: str, shown: int = 12
) -> None:
    """Refuse weights whose names, shapes or kinds of values differ from the wanted ones.

    Raises:
        TeacherError: lists the first ``shown`` names that are missing, unknown or of another shape, with the nearest
            name on the other side; or names one that holds NaN, infinity or another dtype.
    """
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    reshaped = [name for name in sorted(found.keys() & wanted.keys()) if found[name].shape != wanted[name].shape]
    if not (problems := [*missing, *extra, *reshaped]):
        for name, value in found.items():
            if odd := _odd_values(value, wanted[name]):
                raise TeacherError(f"weights: {path}: {name} {odd}. Save it again from a network without such values")
        return
    if not (found.keys() - {"mean", "std"}) & wanted.keys():
        theirs, ours = (", ".join(list(names)[:4]) + (" ..." if len(names) > 4 else "") for names in (extra, missing))
        raise TeacherError(
            f"weights: {path} does not fit {into}: not one of its names is the network's; the file has {theirs}, the "
            f"network {ours}. Choose the network it was saved from"
        )
    lines = [f"{name}: missing{_nearest(name, extra or found, 'file')}" for name in missing[:shown]]
    lines += [f"{name}: not in the network{_nearest(name, missing or wanted, 'network')}" for name in extra[:shown]]
    lines += [
        f"{name}: shape {tuple(found[name].shape)}, the network has {tuple(wanted[name].shape)}"
        for name in reshaped[:shown]
    ]
    more = f"\n  ... {len(problems) - shown} more" if len(problems) > shown else ""
    swapped = "" if missing or extra else "All names match: these are weights of another part, or of another size. "
    listed = "\n  ".join(lines[:shown])
    raise TeacherError(
        f"weights: {path} does not fit {into}:\n  {listed}{more}\n{swapped}Choose the network it was saved from"
    )


def _odd_values(value: Tensor, wanted: Tensor) -> str:
    """What is wrong with the values of a tensor of the right shape; empty if nothing is."""
    kinds = [(v.is_floating_point(), v.is_complex(), v.dtype == torch.bool) for v in (value, wanted)]
    if kinds[0] != kinds[1]:
        return "is {}, the network's is {}".format(*(str(v.dtype).removeprefix("torch.") for v in (value, wanted)))
    if value.is_floating_point() and not all(part.float().isfinite().all() for part in value.flatten().split(CHUNK)):
        return "holds NaN or infinity"
    return ""


def _nearest(name: str, others: Iterable[str], owner: str) -> str:
    close = difflib.get_close_matches(name, list(others), n=1, cutoff=0.5)
    return f" (the {owner} has {close[0]})" if close else ""


def _name(net: nn.Module) -> str:
    return type(getattr(net, "net", net)).__name__
