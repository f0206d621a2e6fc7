"""Things that take long and are wanted again: kept in a folder named after a hash of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from kd_lightning.errors import UserError, VersionError
from kd_lightning.store import strangers

FORMAT_VERSION = 1
"""Of artefacts, checkpoints, results and students; raised when old ones cannot be read any more."""

NAME = re.compile(r"[a-z]+-[0-9a-f]{12}")
"""What an artefact's folder is called."""


WHOLE, GONE = "whole", "gone"


def refuse_format(found: Any, where: Path, remedy: str = "make it anew") -> None:
    """Let files of this format pass.

    Args:
        found: the ``format_version`` that a file gives.
        where: the file.
        remedy: what to do with an older one.

    Raises:
        VersionError: another format; says what to do.
    """
    if found == FORMAT_VERSION and not isinstance(found, bool):
        return
    newer = isinstance(found, int) and found > FORMAT_VERSION
    said = "of many digits" if isinstance(found, int) and abs(found) > 1e9 else f"{found!s:.20}"
    raise VersionError(
        f"{where} has format_version {said}, this kd_lightning reads {FORMAT_VERSION}: "
        + ("it was written by a newer one, install that" if newer else remedy)
    )


def remedy(folder: Path) -> str:
    """What to type where a file of this artefact cannot be read."""
    return f"kd-artifacts rm {folder.name}, and it is made anew"


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What ``artifact.json`` says of a finished artefact, None where there is none.

    Raises:
        VersionError: it has another format.
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
    """``WHOLE``, ``GONE``, or what is wrong with a finished artefact: a file that is not as long as it was written.

    Raises:
        VersionError: it has another format.
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
    """Bytes of the files that are read again, by their paths in an artefact's folder."""
    found = [*folder.glob("*.json"), *folder.glob("*.csv"), *folder.rglob("*.safetensors"), *folder.rglob("*.ckpt")]
    return {str(file.relative_to(folder)): file.stat().st_size for file in found if file.is_file()}


def _set_aside(folder: Path) -> None:
    """Make place for another, where the artefact that is there is damaged."""
    if (wrong := state_of(folder)) in (WHOLE, GONE):
        return
    aside = folder.with_name(folder.name + ".damaged")
    print(f"{folder.name} is damaged ({wrong}): it is set aside as {aside}, and made anew", file=sys.stderr, flush=True)
    with writing(aside):
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)


def digest(config: Any) -> str:
    """First 12 hex digits of the SHA-256 of ``config`` as canonical JSON."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_digest(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of a file."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def names_file(text: Any) -> bool:
    """Whether a value of a composition is the path of a file that is there."""
    return isinstance(text, str) and text != "" and os.path.isfile(os.path.expanduser(text))


def within_artefact(path: str, root: str | Path) -> str | None:
    """Where in the store a file of a finished artefact lies, as ``/kind-hash/name``; None for every other file.

    Args:
        path: of a file.
        root: of the store.
    """
    file, store = (os.path.abspath(os.path.expanduser(where)) for where in (path, str(root)))
    inside = os.path.relpath(file, store).split(os.sep)
    finished = NAME.fullmatch(inside[0]) and os.path.isfile(os.path.join(store, inside[0], "artifact.json"))
    return "/" + "/".join(inside) if finished and len(inside) > 1 else None


def by_content(node: Any, root: str | Path) -> Any:
    """Files of finished artefacts count by their name, which says what made them; all others by what is in them."""
    if isinstance(node, dict):
        return {k: by_content(v, root) for k, v in node.items()}
    if isinstance(node, list):
        return [by_content(v, root) for v in node]
    if not names_file(node):
        return node
    return within_artefact(node, root) or file_digest(node)


def copy_into(source: Path, target: Path, leave: Sequence[str] = ()) -> None:
    """Copy the files of a folder of the store as new files, which their owner may write, whatever the store's may.

    Args:
        source: folder; links to folders in it are left out.
        target: folder, made where it is missing; files of the same names are overwritten.
        leave: patterns of names that are left out.
    """

    def wanted(names: Sequence[str]) -> list[str]:
        return [name for name in names if not any(fnmatch(name, pattern) for pattern in leave)]

    for top, folders, files in os.walk(source):
        folders[:] = wanted(folders)
        place = target / Path(top).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in wanted(files):
            shutil.copyfile(Path(top) / name, place / name)


def size_of(folder: Path) -> int:
    """Bytes of the files in and below a folder, also of one that changes meanwhile."""
    total = 0
    for top, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(top, file)).st_size
    return total


def in_words(size: float) -> str:
    """Bytes as a person reads them: ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            break
        size, unit = size / 1000, {"B": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` so that readers see the old file or the new one, never a half.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            part.write_text(json.dumps(content, indent=2, default=str) + "\n")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into one clear line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write {path}: {reason}. Free some space, or choose another place with "
            "artifacts.root=DIR (kept work) or hydra.run.dir=DIR (results)"
        ) from error


def _by_itself(decide: Callable[[], Any]) -> Any:
    return decide()


class Store:
    """A folder of artefacts.

    Args:
        root: where artefacts live; default is the user's cache directory.
        reuse: ``False`` builds anew what this store has not built itself since it was made.
        decided: called with what one process of several has to do, and returns its result to all of them, as
            :func:`kd_lightning.distributed.collectives.decided` does; by default there is one process.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        reuse: bool = True,
        decided: Callable[[Callable[[], Any]], Any] = _by_itself,
    ) -> None:
        self.root = Path(root).expanduser() if root else user_cache_path("kd_lightning")
        self.reuse = reuse
        self._decided = decided
        self.built: set[Path] = set()
        self._used: list[set[str]] = []

    def path(self, kind: str, config: Mapping[str, Any]) -> Path:
        """Where the artefact that ``config`` describes is, or would be."""
        return self.root / f"{kind}-{digest({'kind': kind, **config})}"

    def obtain(
        self, kind: str, config: Mapping[str, Any], build: Callable[[Path], None], *, everywhere: bool = False
    ) -> Path:
        """Return the folder of the artefact, calling ``build`` on an unfinished folder if it is not there.

        One process builds while others wait. ``build`` finds in the folder whatever an interrupted
        build left, and goes on from it; nobody else ever sees a folder whose build has not returned.
        Among ranks the first alone looks, locks and tidies up.

        Args:
            kind: first part of the folder's name, such as ``teacher``.
            config: plain data that determines the result: settings, parents' hashes, seed, builder's version.
            build: writes the artefact into the folder it is given.
            everywhere: whether every rank builds, as in a fit; else the first one does while the others wait.

        Raises:
            UserError: the store cannot be written, or the artefact that is there cannot be read.
        """
        folder = self.path(kind, config)
        if self._used:  # what is being built now uses it
            self._used[-1].add(folder.name)
        if self._usable(folder):  # what is finished never changes: no lock, and a read-only store will do
            return folder
        with self._locked(folder):
            if not self._usable(folder):
                work = _unfinished(folder)
                self._decided(lambda: _set_aside(folder))
                self._decided(lambda: self._begin(work))
                self._used.append(set())
                try:
                    build(work) if everywhere else self._decided(lambda: build(work))
                finally:
                    used = self._used.pop() | set(NAME.findall(json.dumps(config, default=str)))  # a stage's file, too
                meta = {"format_version": FORMAT_VERSION, "kind": kind, "uses": sorted(used), "config": config}
                self._decided(lambda: self._finish(work, folder, meta))
                self.built.add(folder)
        return folder

    def _usable(self, folder: Path) -> bool:
        may = self.reuse or folder in self.built
        return may and self._decided(lambda: state_of(folder) == WHOLE)

    def _begin(self, work: Path) -> None:
        with writing(work):
            if not self.reuse:
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
        self._decided(lambda: _acquire(lock, folder))
        try:
            yield
        finally:
            lock.release()


def _unfinished(folder: Path) -> Path:
    return folder.with_name(folder.name + ".unfinished")


def _acquire(lock: FileLock, folder: Path) -> None:
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=2)
        except Timeout:
            print(f"another process is making {folder.name}: waiting for it", file=sys.stderr, flush=True)
            lock.acquire()
