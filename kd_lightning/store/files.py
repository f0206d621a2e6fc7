"""Files and folders: their digests and sizes, copying them, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from kd_lightning.errors import UserError


def digest(config: Any) -> str:
    """First 12 hex digits of the SHA-256 of ``config`` as canonical JSON."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_digest(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of a file."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def names_file(text: Any) -> bool:
    """Whether a value of a configuration is the path of an existing file."""
    return isinstance(text, str) and text != "" and os.path.isfile(os.path.expanduser(text))


def copy_into(source: Path, target: Path, leave: Sequence[str] = ()) -> None:
    """Copy the files of a folder in the store as new files that their owner may write, even if the store is read-only.

    Args:
        source: folder; links to folders inside it are skipped.
        target: folder, created if missing; files of the same names are overwritten.
        leave: patterns of file names to skip.
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
    """Bytes of the files in and below a folder, even if it changes meanwhile."""
    total = 0
    for top, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(top, file)).st_size
    return total


def in_words(size: float) -> str:
    """A number of bytes for people: ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            break
        size, unit = size / 1000, {"B": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one.

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
    """Turn an OSError while writing ``path`` into one line of advice.

    Raises:
        UserError: ``path`` cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write {path}: {reason}. Free some space, or choose another place with "
            "artifacts.root=DIR (kept work) or hydra.run.dir=DIR (results)"
        ) from error
