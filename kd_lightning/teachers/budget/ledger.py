"""The ledger of query-only teachers: cached answers, their cost and the remaining budgets, in one file for all runs.

It is an SQLite file on a local disk (its write-ahead log does not work over a network). To query, a client first
reserves the images, in one transaction that also checks the budgets and which of them others are querying; sends the
query; and settles it, which stores the answers. An attempt whose outcome is unknown is *in doubt* and stays counted as
spent, so no limit is exceeded by the teacher's own count, even if processes are killed at any point.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from kd_lightning.errors import TeacherError, VersionError
from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.budget import drift
from kd_lightning.teachers.budget.codec import Failed, Kept, packed
from kd_lightning.teachers.budget.recovery import close, close_dead
from kd_lightning.teachers.budget.spare import SUFFIX, Spare, Unsettled
from kd_lightning.teachers.budget.tables import (
    BUCKETS,
    FORMAT,
    SCHEMA,
    Bucket,
    Claim,
    Reserved,
    Spent,
    account_of,
    add,
    begin_attempt,
    close_attempt,
    flying,
    in_one_line,
    is_open,
    recall,
    refuse_excess,
    store_answers,
    teacher_of,
)

WAIT = 120.0
"""Seconds to wait for another process that holds the file."""


class Ledger:
    """One file, shared by threads and processes of one machine. Opened, or created, at the first use.

    Args:
        file: its path.
        durable: whether settled answers survive a power cut; else only the end of this process, which is faster and
            enough where a repeated query costs nothing.
    """

    def __init__(self, file: str | Path, *, durable: bool = True) -> None:
        self.file, self.durable = Path(file).expanduser(), durable
        self._alive = self.file.with_name(self.file.name + ".open")
        self._lock = threading.RLock()
        self._opened_by: int | None = None
        self._db: sqlite3.Connection
        self._begin_life()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction, rolled back if the block raises; failures of the file become one TeacherError."""
        with self._lock, in_one_line(self.file):
            if self._opened_by != os.getpid():  # a forked child needs a connection of its own
                self._open()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def _begin_life(self) -> None:
        self._me = uuid.uuid4().hex
        self._spare = Spare(self._alive / (self._me + SUFFIX))

    def _open(self) -> None:
        self._begin_life()
        lock = FileLock(self._alive / self._me, thread_local=False)
        self._alive.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        db = sqlite3.connect(self.file, timeout=WAIT, isolation_level=None, check_same_thread=False)
        weakref.finalize(self, close, db, lock, self._spare, os.getpid())
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if self.durable else 'NORMAL'}")
        self._db, self._opened_by = db, os.getpid()
        try:
            self._prepare()
            self.recover()
        except BaseException:
            self._opened_by = None
            raise

    def _prepare(self) -> None:
        with self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={FORMAT}")
            elif version != FORMAT:
                raise VersionError(
                    f"{self.file} has format_version {version}, this kd_lightning reads {FORMAT}: use the version that "
                    "wrote it, or name another file with teacher.ledger=FILE"
                )

    @contextmanager
    def _up_to_date(self) -> Iterator[sqlite3.Connection]:
        """A transaction that first stores the answers of failed commits."""
        with self._lock:
            with self._transaction() as db:
                kept = self._spare.unsettled
                for one in kept:
                    if is_open(db, one.attempt):  # the failed commit may have succeeded after all
                        store_answers(db, one.claim, one.attempt, one.answers)
                yield db
            if kept:
                self._spare.settled()

    def begin(self, run: str, teacher: Described, *, anew: bool = False) -> None:
        """Open a run's accounts.

        Args:
            run: its name.
            teacher: the teacher that it will query.
            anew: forget what an earlier run of this name used; the ledger's total is kept.

        Raises:
            TeacherError: the run has used answers of another teacher, or of another version of this one.
        """
        with self._transaction() as db:
            accounts = [account_of(db, run, bucket) for bucket in BUCKETS]
            if anew:
                for account in accounts:
                    db.execute("DELETE FROM used WHERE account = ?", (account,))
                    db.execute("UPDATE accounts SET used = 0, doubt = 0, paid = 0, cost = 0 WHERE id = ?", (account,))
            other = db.execute(
                "SELECT name, version FROM accounts JOIN teachers ON teacher = teachers.id"
                " WHERE owner = ? AND used > 0 AND teacher != ?",
                (run, me := teacher_of(db, teacher)),
            ).fetchone()
            if other:
                raise TeacherError(
                    f"the teacher is {teacher.name}, version {teacher.version}, but this run has used answers of "
                    f"{other[0]}, version {other[1]}, and two teachers are never mixed: artifacts.reuse=false starts "
                    "the run anew and pays for all answers anew"
                )
            db.execute("UPDATE accounts SET teacher = ? WHERE owner = ?", (me, run))

    def recall(self, claim: Claim, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """Known answers to images with different keys, noted as used, if the remaining budget covers all images.

        Raises:
            BudgetExceeded: the images do not fit into the remaining budget; nothing has changed.
        """
        with self._up_to_date() as db:
            known, noted = recall(db, claim, keys)
            unknown = [key for key in keys if key not in known]
            paying = len(unknown) - len(flying(db, unknown))
            refuse_excess(db, claim, noted + len(unknown), paying, noted=noted)
            return known

    def reserve(self, claim: Claim, keys: Sequence[bytes]) -> Reserved:
        """Find out which of the images, with different keys, must be queried, and reserve them.

        Raises:
            BudgetExceeded: they do not fit into the remaining budget; nothing has changed.
        """
        with self._up_to_date() as db:
            known, noted = recall(db, claim, keys)
            unknown = [key for key in keys if key not in known]
            others = flying(db, unknown)
            mine = [key for key in unknown if key not in others]
            refuse_excess(db, claim, noted + len(mine), len(mine), noted=noted)
            attempt = self._begin_attempt(db, claim, len(mine)) if mine else None
            db.executemany("INSERT INTO flights VALUES (?, ?)", [(key, attempt) for key in mine])
            return Reserved(attempt, mine, known, [key for key in unknown if key in others])

    def reserve_again(self, claim: Claim, images: int) -> int:
        """Reserve images that are queried whether their answers are known or not; returns the attempt's number.

        Raises:
            BudgetExceeded: they do not fit into the remaining budget.
        """
        with self._up_to_date() as db:
            refuse_excess(db, claim, images, images)
            return self._begin_attempt(db, claim, images)

    def _begin_attempt(self, db: sqlite3.Connection, claim: Claim, images: int) -> int:
        attempt = begin_attempt(db, claim, images, self._me)
        if not claim.certain:  # reserve disk space for paid answers before the query is sent
            self._spare.secure(attempt, claim, images)
        return attempt

    def settle(self, claim: Claim, attempt: int, answers: Mapping[bytes, Kept]) -> None:
        """Store the answers to an attempt: they are paid for, and never queried again.

        Raises:
            TeacherError: the file cannot be written; the answers are saved beside it and stored at the next use.
        """
        told = Unsettled(claim, attempt, {key: packed(answer) for key, answer in answers.items()})
        try:
            with self._transaction() as db:
                store_answers(db, claim, attempt, told.answers)
        except TeacherError:
            with in_one_line(self.file), self._lock:
                self._spare.keep(told)
            raise
        self._spare.free(attempt)

    def release(self, attempt: int) -> None:
        """Book an attempt as not counted."""
        with self._transaction() as db:
            close_attempt(db, attempt, "released")
        self._spare.free(attempt)

    def doubt(self, attempt: int) -> None:
        """Book an attempt as in doubt: its outcome is unknown, and it counts as spent."""
        with self._transaction() as db:
            close_attempt(db, attempt, "doubt")
        self._spare.free(attempt)

    def fail(self, attempt: int, key: bytes, failed: Failed) -> None:
        """Book the attempt at a single image as rejected and not counted."""
        with self._transaction() as db:
            close_attempt(db, attempt, "released")
            db.execute("INSERT INTO answers (key, told) VALUES (?, ?)", (key, packed(failed)))
        self._spare.free(attempt)

    def adopt(self, claim: Claim, images: int) -> int:
        """Count the images that ``claim.fit`` used, in any run, as used by ``claim.run`` as well; returns how many.

        Args:
            claim: run and fit.
            images: number that the fit reports; larger than the known number if the fit used another ledger.

        Raises:
            BudgetExceeded: they do not fit into the remaining budget.
        """
        assert claim.fit is not None
        with self._transaction() as db:
            run, fit = account_of(db, claim.run, claim.bucket), account_of(db, claim.fit, claim.bucket)
            (known,) = db.execute("SELECT COUNT(*) FROM used WHERE account = ?", (fit,)).fetchone()
            statement = "INSERT OR IGNORE INTO used SELECT ?, answer FROM used WHERE account = ?"
            fresh = db.execute(statement, (run, fit)).rowcount
            if images > known and db.execute("INSERT OR IGNORE INTO used VALUES (?, ?)", (run, -fit)).rowcount:
                fresh += images - known  # once per run
            refuse_excess(db, claim, fresh, 0)
            add(db, run, used=fresh)
            return max(known, images)

    def used(self, owner: str, bucket: Bucket = "training") -> int:
        """Number of different images that a run or a fit has used."""
        with self._transaction() as db:
            where = (account_of(db, owner, bucket),)
            return int(db.execute("SELECT used FROM accounts WHERE id = ?", where).fetchone()[0])

    def spent(self, run: str) -> dict[str, Spent]:
        """A run's accounts, by bucket."""
        with self._transaction() as db:
            rows = db.execute("SELECT bucket, used, paid, doubt, cost FROM accounts WHERE owner = ?", (run,))
            booked = {name: Spent(int(u), int(p), int(d), float(cost)) for name, u, p, d, cost in rows}
            return {bucket: Spent() for bucket in BUCKETS} | booked

    def keep_drift_checks(self, teacher: Described, images: Mapping[bytes, np.ndarray], number: int) -> bool:
        """As :func:`~kd_lightning.teachers.budget.drift.keep`."""
        with self._transaction() as db:
            return drift.keep(db, teacher, images, number)

    def drift_checks(self, teacher: Described, number: int) -> list[tuple[np.ndarray, Kept]]:
        """As :func:`~kd_lightning.teachers.budget.drift.kept`."""
        with self._transaction() as db:
            return drift.kept(db, teacher, number)

    def recover(self) -> int:
        """Book the attempts that dead processes left open; returns how many."""
        with self._transaction() as db:
            closed, dead = close_dead(db, self._alive, self._me)
        for process in dead:
            (self._alive / (process + SUFFIX)).unlink(missing_ok=True)
        return closed
