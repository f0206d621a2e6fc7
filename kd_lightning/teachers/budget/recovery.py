"""Processes that use a ledger hold a lock file; the attempts that dead ones left open are booked."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kd_lightning.teachers.budget.spare import SUFFIX, Spare, left_by
from kd_lightning.teachers.budget.tables import close_attempt, store_answers


def close_dead(db: sqlite3.Connection, alive: Path, me: str) -> tuple[int, list[str]]:
    """Book the attempts of dead processes; returns their number, and the names of these processes.

    Args:
        db: in a transaction.
        alive: folder with lock files and saved answers.
        me: name of this process.
    """
    closed = 0
    rows = db.execute("SELECT process, id, certain FROM attempts WHERE state = 'pending'").fetchall()
    others = {process for process, *_ in rows} | {file.stem for file in alive.glob("*" + SUFFIX)}
    dead = [process for process in others - {me} if is_dead(alive / process)]
    for process in dead:
        for one in left_by(alive / (process + SUFFIX)):
            if (process, one.attempt, one.claim.certain) in rows:
                rows.remove((process, one.attempt, one.claim.certain))
                store_answers(db, one.claim, one.attempt, one.answers)
                closed += 1
    for process, attempt, certain in rows:
        if process in dead:
            close_attempt(db, attempt, "released" if certain else "doubt")
            closed += 1
    return closed, dead


def is_dead(file: Path) -> bool:
    """Whether the process that holds this lock for as long as it lives has ended."""
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    file.unlink(missing_ok=True)
    return True


def close(db: sqlite3.Connection, lock: FileLock, spare: Spare, process: int) -> None:
    """Close a process's connection and remove its lock file; no effect in a forked child."""
    if os.getpid() == process:
        db.close()
        with suppress(OSError):
            if not spare.unsettled:
                spare.file.unlink(missing_ok=True)
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
