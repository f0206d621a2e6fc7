"""The format of stored files, and the refusal of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_lightning.errors import VersionError

FORMAT_VERSION = 1
"""Version of the format of artefacts, checkpoints, results and students; raised when old files become unreadable."""


def refuse_format(found: Any, where: Path, remedy: str = "make it anew") -> None:
    """Raise unless a file has the format version of this package.

    Args:
        found: the file's ``format_version``.
        where: the file.
        remedy: what to do with a file of an older version.

    Raises:
        VersionError: another format version; says what to do.
    """
    if found == FORMAT_VERSION and not isinstance(found, bool):
        return
    newer = isinstance(found, int) and found > FORMAT_VERSION
    said = "of many digits" if isinstance(found, int) and abs(found) > 1e9 else f"{found!s:.20}"
    raise VersionError(
        f"{where} has format_version {said}, this kd_lightning reads {FORMAT_VERSION}: "
        + ("it was written by a newer one, install that" if newer else remedy)
    )
