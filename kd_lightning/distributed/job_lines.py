"""One line for each running job of a sweep, renewed in place on a terminal."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

TAIL = 4096
"""Bytes of a log in which its last line is looked for."""


class JobLines:
    """The last line that each job has written to its ``console.log``, below what else is printed.

    Args:
        stream: where to show them; nothing is shown where it is no terminal.
        seconds: time between two looks.
    """

    def __init__(self, stream: TextIO | None = None, *, seconds: float = 1.0) -> None:
        self.stream, self.seconds = stream or sys.stdout, seconds
        self.shown, self.last = 0, 0.0

    def show(self, jobs: Iterable[Any]) -> None:
        """Renew the lines, if it is time; each job has a ``number`` and a ``folder``."""
        if not self.stream.isatty() or time.monotonic() - self.last < self.seconds:
            return
        self.clear()
        wide = shutil.get_terminal_size().columns - 1
        lines = [f"job {job.number}: {last_line(job.folder / 'console.log')}"[:wide] for job in jobs]
        self.stream.write("".join(f"{line}\n" for line in lines))
        self.stream.flush()
        self.shown, self.last = len(lines), time.monotonic()

    def clear(self) -> None:
        """Take the lines away, before anything else is printed."""
        if self.shown:
            self.stream.write(f"\x1b[{self.shown}A\x1b[J")
            self.stream.flush()
            self.shown = 0


def last_line(file: Path) -> str:
    """The last line of a log with anything in it; empty where there is none."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - TAIL))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(re.split(r"[\r\n]+", text)) if line.strip()), "")
