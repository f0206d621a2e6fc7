"""Things that take long and are wanted again: kept in a folder named after a hash of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from kd_lightning.errors import UserError

FORMAT_VERSION = 1


def digest(config: Any) -> str:
    """First 12 hex digits of the SHA-256 of ``config`` as canonical JSON."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_digest(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of a file."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


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


class Store:
    """A folder of artefacts.

    Args:
        root: where artefacts live; default is the user's cache directory.
        reuse: ``False`` builds anew what this store has not built itself since it was made.
    """

    def __init__(self, root: str | Path | None = None, *, reuse: bool = True) -> None:
        self.root = Path(root).expanduser() if root else user_cache_path("kd_lightning")
        self.reuse = reuse
        from kd_lightning.ranks import decided  # imports torch, which reports do without

        self._decided = decided
        self.built: set[Path] = set()

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
            UserError: the store cannot be written.
        """
        folder = self.path(kind, config)
        if self._usable(folder):  # what is finished never changes: no lock, and a read-only store will do
            return folder
        with self._locked(folder):
            if not self._usable(folder):
                work = _unfinished(folder)
                self._decided(lambda: self._begin(work))
                build(work) if everywhere else self._decided(lambda: build(work))
                self._decided(lambda: self._finish(work, folder, kind, config))
                self.built.add(folder)
        return folder

    def _usable(self, folder: Path) -> bool:
        may = self.reuse or folder in self.built
        return may and self._decided((folder / "artifact.json").is_file)

    def _begin(self, work: Path) -> None:
        with writing(work):
            if not self.reuse:
                shutil.rmtree(work, ignore_errors=True)
            work.mkdir(exist_ok=True)

    def _finish(self, work: Path, folder: Path, kind: str, config: Mapping[str, Any]) -> None:
        old = folder.with_name(folder.name + ".old")
        write_json(work / "artifact.json", {"format_version": FORMAT_VERSION, "kind": kind, "config": config})
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
