"""The contents of a store: each artefact's description and parents, and which artefacts may be removed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd_lightning.core.strangers import read_json
from kd_lightning.errors import UserError
from kd_lightning.store.artifacts import NAME, read_meta
from kd_lightning.store.files import size_of

DERIVED = ("fit", "pool", "labels")
"""Kinds that ``gc`` removes if no run uses them, because they can be computed again. Paid answers and runs stay."""


@dataclass(frozen=True)
class Entry:
    """One folder of the store.

    Args:
        folder: its path.
        name: of the artefact: ``kind-hash``.
        state: empty, ``unfinished``, ``old``, ``damaged`` or ``unreadable``.
        size: bytes.
        touched: when a file in it last changed, in seconds since the epoch.
        about: short description.
        uses: names of the artefacts it was made from; None if unknown.
    """

    folder: Path
    name: str
    state: str
    size: int
    touched: float
    about: str
    uses: frozenset[str] | None

    @property
    def kind(self) -> str:
        """First part of its name."""
        return self.name.partition("-")[0]


def entries(root: Path) -> list[Entry]:
    """All entries of a store, sorted by kind and within a kind by size, the largest first.

    Raises:
        UserError: the folder does not exist.
    """
    if not root.is_dir():
        raise UserError(f"there is no store {root}: nothing was kept yet, or KD_ARTIFACTS or --root names another")
    found = [
        _entry(folder, *match.groups())
        for folder in root.iterdir()
        if folder.is_dir() and (match := re.fullmatch(rf"({NAME.pattern})(?:\.(unfinished|old|damaged))?", folder.name))
    ]
    return sorted(found, key=lambda entry: (entry.kind, -entry.size))


def _entry(folder: Path, name: str, state: str | None) -> Entry:
    meta: dict[str, Any] = {}
    if state is None:
        try:
            meta = read_meta(folder) or {}
        except UserError as error:
            state = "unreadable"
            meta = {"why": str(error)}
        if not meta:
            state = "unreadable"
    times = [folder.stat().st_mtime, *(file.stat().st_mtime for file in folder.iterdir() if file.is_file())]
    uses = frozenset(meta["uses"]) if "uses" in meta else None
    return Entry(folder, name, state or "", size_of(folder), max(times), _about(folder, meta), uses)


def _about(folder: Path, meta: dict[str, Any]) -> str:
    config, kind = meta.get("config") or {}, meta.get("kind")
    words: list[Any]
    if "why" in meta:
        return str(meta["why"]).removeprefix(f"{folder / 'artifact.json'} ").partition(":")[0]
    if kind == "run":
        named = config.get("names") or {}
        words = [f"{named.get('method')} on {named.get('data')}", named.get("student"), f"seed {config.get('seed')}"]
    elif kind == "fit":
        try:
            report = read_json(folder / "fit.json")
        except UserError:
            report = {}
        named = report.get("names") or {}
        student = named.get("student") or str((config.get("student") or {}).get("_target_")).rpartition(".")[2]
        method = named.get("method") or str((config.get("method") or {}).get("_target_")).rpartition(".")[2]
        place = f" on {report['data']}" if "data" in report else ""
        words = [report.get("phase"), f"{method}{place}", student, f"seed {config.get('seed')}"]
    elif kind == "pool":
        words = [config.get("source"), f"{config.get('images')} images", f"seed {config.get('seed')}"]
    elif kind == "images":
        words = [
            f"{config.get('count')} images decoded",
            f"{_by(config.get('size'))} pixels{' on disk' * ('form' in config)}",
        ]
    else:
        words = {
            "answers": ["of a teacher, perhaps paid for"],
            "labels": ["a white teacher's, of a pool"],
            "weights": ["of a teacher in memory"],
        }.get(str(kind), [])
    return ", ".join(str(word) for word in words if word)


def _by(size: Any) -> str:
    """Height and width: ``24x96``; one number for a square."""
    return "x".join(map(str, size)) if isinstance(size, list) else f"{size}x{size}"


def users_of(name: str, found: Sequence[Entry]) -> list[Entry]:
    """The finished artefacts that were made from this one."""
    return [entry for entry in found if entry.uses and name in entry.uses]


def garbage(found: Sequence[Entry], *, before: float, keep: Sequence[str] = ()) -> tuple[list[Entry], list[str]]:
    """Entries that can be removed without loss.

    Args:
        found: all entries of a store.
        before: remove only what last changed before this time, in seconds since the epoch.
        keep: prefixes of names to keep.

    Returns:
        The entries, and notes on why others stay.
    """
    old = [entry for entry in found if entry.touched < before and not entry.folder.name.startswith(tuple(keep))]
    going = [entry for entry in old if entry.state in ("unfinished", "old", "damaged") and not at_work(entry)]
    runs = [entry for entry in found if entry.kind == "run" and entry not in going]
    notes: list[str] = []
    if begun := [entry.name for entry in runs if entry.state == "unfinished"]:
        notes.append(f"fits stay, because {', '.join(begun)} is unfinished and may use them")
    elif unsure := [entry.name for entry in runs if entry.uses is None]:
        notes.append(
            f"fits stay, because it is unknown what {', '.join(unsure)} uses: kd-artifacts rm removes those by name"
        )
    else:
        roots = [e for e in found if e not in going and (e.kind not in DERIVED or e not in old)]
        needed = _reached(roots, found)
        going += [entry for entry in old if entry.kind in DERIVED and not entry.state and entry.name not in needed]
    return going, notes


def _reached(roots: Sequence[Entry], found: Sequence[Entry]) -> set[str]:
    uses = {entry.name: entry.uses or frozenset() for entry in found if not entry.state}
    reached: set[str] = set()
    ahead = [entry.name for entry in roots]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += uses.get(name, ())
    return reached


@contextmanager
def locked(entry: Entry) -> Iterator[None]:
    """Hold the lock of an entry, so that no process builds it.

    Raises:
        UserError: a process is building it, or the store cannot be written.
    """
    lock = FileLock(entry.folder.with_name(entry.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{entry.name} is being made by another process: stop that first") from None
    except OSError as error:
        raise UserError(f"cannot write {entry.folder.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def at_work(entry: Entry) -> bool:
    """Whether a process is building it."""
    try:
        with locked(entry):
            return False
    except UserError:
        return True


def remove(entry: Entry) -> None:
    """Delete a folder atomically for other processes.

    Raises:
        UserError: a process is building it, or it cannot be deleted.
    """
    with locked(entry):
        away = entry.folder.with_name(entry.name + ".old")
        try:
            if entry.folder != away:
                shutil.rmtree(away, ignore_errors=True)
                os.replace(entry.folder, away)
            shutil.rmtree(away)
        except OSError as error:
            raise UserError(f"cannot delete {entry.folder}: {error.strerror}") from error
