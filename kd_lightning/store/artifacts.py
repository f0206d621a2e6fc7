"""Artefacts: results of long computations, each in a folder named after a hash of what determines it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from kd_lightning.core import strangers
from kd_lightning.core.file_format import FORMAT_VERSION, refuse_format
from kd_lightning.errors import UserError, VersionError
from kd_lightning.store.files import digest, file_digest, names_file, write_json, writing

NAME = re.compile(r"[a-z]+-[0-9a-f]{12}")
"""Name of an artefact's folder."""


WHOLE, GONE = "whole", "gone"


def remedy(folder: Path) -> str:
    """What to type if a file of this artefact cannot be read."""
    return f"kd-artifacts rm {folder.name}, and it is made anew"


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The content of a finished artefact's ``artifact.json``; None if there is none.

    Raises:
        VersionError: it has another format version.
        UserError: it cannot be read.
    """
    file, advice = folder / "artifact.json", remedy(folder)
    if not os.path.lexists(file):
        return None
    meta = strangers.read_json(file, advice=advice)
    if not isinstance(meta, dict) or "format_version" not in meta:
        raise UserError(f"{file} cannot be read (it names no format_version): {advice}")
    refuse_format(meta["format_version"], file, advice)
    return meta


def state_of(folder: Path) -> str:
    """``WHOLE``, ``GONE``, or what is damaged: a file that does not have the length it was written with.

    Raises:
        VersionError: the artefact has another format version.
    """
    try:
        meta = read_meta(folder)
    except VersionError:
        raise
    except UserError as error:
        return str(error).removesuffix(f": {remedy(folder)}")
    if meta is None:
        return GONE
    sizes = meta.get("files")
    for name, size in sizes.items() if isinstance(sizes, dict) else ():
        now = os.lstat(folder / name).st_size if os.path.lexists(folder / name) else 0
        if now != size:
            return f"{name} is {now} bytes long, {size} were written"
    return WHOLE


def _sizes(folder: Path) -> dict[str, int]:
    """Path relative to the artefact's folder -> bytes, for the files that are read back later."""
    found = [*folder.glob("*.json"), *folder.glob("*.csv"), *folder.rglob("*.safetensors"), *folder.rglob("*.ckpt")]
    return {str(file.relative_to(folder)): file.stat().st_size for file in found if file.is_file()}


def _set_aside(folder: Path) -> None:
    """Rename a damaged artefact, so that it can be built again."""
    if (wrong := state_of(folder)) in (WHOLE, GONE):
        return
    aside = folder.with_name(folder.name + ".damaged")
    print(f"{folder.name} is damaged ({wrong}): it is set aside as {aside}, and made anew", file=sys.stderr, flush=True)
    with writing(aside):
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)


def within_artefact(path: str, root: str | Path) -> str | None:
    """``/kind-hash/name`` for a file of a finished artefact; None for any other file.

    Args:
        path: of the file.
        root: of the store.
    """
    file, store = (os.path.abspath(os.path.expanduser(where)) for where in (path, str(root)))
    inside = os.path.relpath(file, store).split(os.sep)
    finished = NAME.fullmatch(inside[0]) and os.path.isfile(os.path.join(store, inside[0], "artifact.json"))
    return "/" + "/".join(inside) if finished and len(inside) > 1 else None


def by_content(node: Any, root: str | Path) -> Any:
    """A configuration in which a finished artefact's file is replaced by its name and any other file by its digest."""
    if isinstance(node, dict):
        return {k: by_content(v, root) for k, v in node.items()}
    if isinstance(node, list):
        return [by_content(v, root) for v in node]
    if not names_file(node):
        return node
    return within_artefact(node, root) or file_digest(node)


def _by_itself(decide: Callable[[], Any]) -> Any:
    return decide()


class Store:
    """A folder of artefacts.

    Args:
        root: the folder; default is the user's cache directory.
        reuse: ``False`` rebuilds every artefact that this object has not built itself.
        scope: of ``reuse=False``: ``all``, or ``student`` for the student's fit and the run only.
        decided: runs a function on one rank and returns its result on all, as
            :func:`kd_lightning.distributed.decisions.decided` does; the default is for a single process.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        reuse: bool = True,
        scope: str = "all",
        decided: Callable[[Callable[[], Any]], Any] = _by_itself,
    ) -> None:
        self.root = Path(root).expanduser() if root else user_cache_path("kd_lightning")
        self.reuse, self.scope = reuse, scope
        self._decided = decided
        self.built: set[Path] = set()
        self.waiting: Callable[[Path], AbstractContextManager[None]] = _waiting
        """What is done while another process makes the artefact that is needed: a line says so."""
        self._used: list[set[str]] = []

    def path(self, kind: str, config: Mapping[str, Any]) -> Path:
        """The folder of the artefact that ``config`` determines, whether it exists or not."""
        return self.root / f"{kind}-{digest({'kind': kind, **config})}"

    def anew(self, *, students: bool = False) -> bool:
        """Whether artefacts are rebuilt: all of them, or ``students``, what is made for the student only."""
        return not self.reuse and (students or self.scope == "all")

    def obtain(
        self,
        kind: str,
        config: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        everywhere: bool = False,
        students: bool = False,
    ) -> Path:
        """The folder of an artefact, built if it does not exist.

        One process builds while others wait. ``build`` receives an unfinished folder, with the files that an
        interrupted build left in it, and continues from them; the folder gets its name only after ``build`` has
        returned. Among ranks only the first locks and renames.

        Args:
            kind: first part of the folder's name, such as ``teacher``.
            config: plain data that determines the result: settings, hashes of parents, seed, builder's version.
            build: writes the artefact into the folder it is given.
            everywhere: whether every rank builds, as in a fit; else only the first, while the others wait.
            students: whether it is the student's fit or the run.

        Raises:
            UserError: the store cannot be written, or the existing artefact cannot be read.
        """
        folder = self.path(kind, config)
        if self._used:  # the artefact under construction uses it
            self._used[-1].add(folder.name)
        anew = self.anew(students=students)
        if self._usable(folder, anew):  # finished artefacts never change: no lock, and the store may be read-only
            return folder
        with self._locked(folder):
            if not self._usable(folder, anew):
                work = _unfinished(folder)
                self._decided(lambda: _set_aside(folder))
                self._decided(lambda: self._begin(work, anew))
                self._used.append(set())
                try:
                    build(work) if everywhere else self._decided(lambda: build(work))
                except Exception:  # not Ctrl-C, after which the same command goes on
                    self._decided(lambda: _leave_no_rest(work))
                    raise
                finally:
                    used = self._used.pop() | set(NAME.findall(json.dumps(config, default=str)))  # a stage's file too
                meta = {"format_version": FORMAT_VERSION, "kind": kind, "uses": sorted(used), "config": config}
                self._decided(lambda: self._finish(work, folder, meta))
                self.built.add(folder)
        return folder

    def _usable(self, folder: Path, anew: bool = False) -> bool:
        may = not anew or folder in self.built
        return may and self._decided(lambda: state_of(folder) == WHOLE)

    def _begin(self, work: Path, anew: bool) -> None:
        with writing(work):
            if anew:
                shutil.rmtree(work, ignore_errors=True)
            work.mkdir(exist_ok=True)

    def _finish(self, work: Path, folder: Path, meta: Mapping[str, Any]) -> None:
        old = folder.with_name(folder.name + ".old")
        (work / "artifact.json").unlink(missing_ok=True)
        write_json(work / "artifact.json", {**meta, "files": _sizes(work)})
        with writing(folder):
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                os.replace(folder, old)
            os.replace(work, folder)
            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        self._decided(lambda: _acquire(lock, folder, self.waiting))
        try:
            yield
        finally:
            lock.release()


def _leave_no_rest(work: Path) -> None:
    """Delete what a failed build left, if it is nothing that the same command goes on from."""
    kept = ("*.ckpt", "*.part", "*.pt", "*.npy", "*.bin", "*.safetensors")
    if not any(next(work.rglob(name), None) for name in kept):
        shutil.rmtree(work, ignore_errors=True)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(folder.name + ".unfinished")


@contextmanager
def _waiting(folder: Path) -> Iterator[None]:
    print(f"another process is making {folder.name}: waiting for it", file=sys.stderr, flush=True)
    yield


def _acquire(lock: FileLock, folder: Path, waiting: Callable[[Path], AbstractContextManager[None]]) -> None:
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=2)
        except Timeout:
            with waiting(folder):
                lock.acquire()
