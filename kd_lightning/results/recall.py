"""Finds the stored result of a command that was run before by its configuration, without importing torch.

What a run depends on is its key, which is computed from its composition, data and code. Here a shorter way is kept
beside the store: a digest of the resolved configuration and of everything that could change the key behind its back
leads to the run's name. The digest covers the library's files, the versions of what it depends on, the devices, and
size and times of every file in and below each path that the configuration names; whatever changes, the digest is
another one, nothing is found, and the key is computed as ever. Compositions that run code of others, ask somebody
else, or read files that their configuration does not name have no digest.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from glob import glob
from importlib import metadata
from pathlib import Path
from typing import Any

from kd_lightning.config.record import leave_plain
from kd_lightning.errors import UserError
from kd_lightning.results.stored import copied, result_in, said_again
from kd_lightning.store.artifacts import NAME, WHOLE, Store, state_of
from kd_lightning.store.files import digest, write_json, writing

OURS = ("kd_lightning.", "lightning.", "torch.nn.", "torch.optim.", "torchmetrics.")
"""Beginnings of the targets that run no code but that of the library and of what it depends on."""
READ_ELSEWHERE = (
    "kd_lightning.networks.foreign.",
    "kd_lightning.networks.onnx_network.",
    "kd_lightning.teachers.remote.",
)
"""Those of them that run code or ask somebody whom the configuration names by other means than a path."""
DATA = "kd_lightning.data.datasets."
LOADERS = frozenset(
    f"{DATA}{name}.load"
    for name in ("digits", "dense_digits", "files", "folder", "none", "rotated_digits", "two_digits")
)
"""Loaders that read what lies in and below the paths they are given, or in scikit-learn, and nothing else."""
MOST_FILES = 20_000
"""Where there are more files, looking at each takes longer than it saves."""
FRESH = 2.0
"""A file changed within so many seconds may change again without showing another time."""


def circumstances(config: Mapping[str, Any]) -> str | None:
    """Digest of a configuration and of what its result depends on besides; None where that cannot be told.

    Args:
        config: the resolved configuration, with the chosen members of its groups as ``names``.
    """
    kept = config.get("artifacts") or {}
    own = {key: value for key, value in config.items() if key != "artifacts"}
    if not kept.get("reuse") or own.get("plan") or not all(map(_plain, _targets(own))):
        return None
    package = Path(__file__).parents[1]
    try:
        files = [_seen(str(package), suffix=".py")] + [_seen(os.path.expanduser(text)) for text in sorted(_texts(own))]
    except _Unsure:
        return None
    machine = [platform.node(), sorted(glob("/dev/nvidia*")), {k: v for k, v in os.environ.items() if "DEVICES" in k}]
    return digest([own, os.getcwd(), sys.version, _versions(), machine, files])


def recalled(key: str | None, config: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The stored result of a command, which is written to its run folder; None if nothing whole is kept under its key.

    Args:
        key: as :func:`circumstances` returns it.
        config: the same configuration.
        folder: the run folder.
    """
    if key is None:
        return None
    note = _note(config, key)
    with suppress(OSError, UserError):
        name = note.read_text()
        kept = note.parents[1] / name
        if NAME.fullmatch(name) and name.startswith("run-") and state_of(kept) == WHOLE:
            result = result_in(kept) | {"run_kept": name, "stored": True}
            leave_plain(config, folder)
            copied(kept, folder)
            write_json(folder / "result.json", result)
            said_again(kept)
            return result
    return None


def remember(key: str | None, config: Mapping[str, Any], name: str) -> None:
    """Keep the name of a command's run for the next time; does nothing in a store that cannot be written.

    Args:
        key: as :func:`circumstances` returned it before the run read anything.
        config: the same configuration.
        name: of the run's artefact.
    """
    if key is None:
        return
    note = _note(config, key)
    with suppress(UserError), writing(note):
        note.parent.mkdir(exist_ok=True)
        part = note.with_name(f".{key}.{os.getpid()}.part")
        part.write_text(name)
        part.replace(note)


def _note(config: Mapping[str, Any], key: str) -> Path:
    return Store(config["artifacts"]["root"]).root / "recall" / key


class _Unsure(Exception):
    """It cannot be told whether files have changed."""


def _plain(target: Any) -> bool:
    if not isinstance(target, str) or not target.startswith(OURS) or target.startswith(READ_ELSEWHERE):
        return False
    return not target.startswith(DATA) or target in LOADERS


def _targets(node: Any) -> Iterator[Any]:
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ():
        if key == "_target_":
            yield value
        yield from _targets(value)


def _texts(node: Any) -> set[str]:
    if isinstance(node, str):
        return {node} if node else set()
    inside = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return set().union(*map(_texts, inside))


def _seen(path: str, suffix: str = "") -> list[Any] | None:
    """Path, size and times of a file, or of all in and below a folder, whose folders count by their names; or None.

    Raises:
        _Unsure: there are too many, or one has changed just now.
    """
    if not os.path.lexists(path):
        return None
    found: list[Any] = []
    for file in _files(path):
        if os.path.isdir(file):
            found.append([file])
        elif file.endswith(suffix):
            about = os.stat(file) if os.path.exists(file) else os.lstat(file)  # a link counts as what it leads to
            if max(about.st_mtime, about.st_ctime) > time.time() - FRESH:
                raise _Unsure
            found.append([file, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino])
        if len(found) > MOST_FILES:
            raise _Unsure
    return found


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    for top, folders, files in os.walk(path, followlinks=True):  # a circle of links ends at MOST_FILES
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (os.path.join(top, name) for name in [*folders, *sorted(files)])


def _versions() -> list[str]:
    needed = [line for line in metadata.requires("kd-lightning") or () if "extra ==" not in line]
    names = ["kd-lightning", *(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed)]
    return [f"{name} {metadata.version(name)}" for name in names]
