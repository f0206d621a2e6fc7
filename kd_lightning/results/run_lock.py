"""The lock that marks a run as running."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RUNNING = ".running"
"""File in a run folder that is locked while a process works on the run."""


def hold(folder: Path) -> int | None:
    """Mark a run as running while this file descriptor, or a copy in another process, is open.

    Returns:
        The descriptor; None if another process has marked the run, or the folder cannot be written.
    """
    try:
        file = os.open(folder / RUNNING, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return None
    for _ in range(20):  # is_running in another process holds the lock for a moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            time.sleep(0.01)
    os.close(file)
    return None


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Mark a run as running in this block; the system removes the mark if the process is killed."""
    file = hold(folder)
    try:
        yield
    finally:
        if file is not None:
            (folder / RUNNING).unlink(missing_ok=True)
            os.close(file)


def is_running(folder: Path) -> bool:
    """Whether a process of this machine, or of one that shares its locks, works on a run.

    The mark is a lock on a file in the folder, which ends with the process in any case; the file itself may remain.
    """
    try:
        file = os.open(folder / RUNNING, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False
