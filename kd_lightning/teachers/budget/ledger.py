"""What a teacher behind a door answered, what that cost, and how much may still be asked: one file for all runs.

An SQLite file on a local disk (its write-ahead log does not work over a network). Whoever wants to ask reserves
first, in one transaction that also counts what is spent and sees who else is asking about the same image; then asks;
then settles, which stores the answers. An attempt whose outcome nobody knows is *in doubt*, and counts as spent for
ever: so no limit is exceeded by the count of whoever answers, whatever is killed and whenever.
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
from filelock import FileLock, Timeout

from kd_lightning.errors import TeacherError, VersionError
from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.budget.codec import Failed, Kept, packed, read
from kd_lightning.teachers.budget.spare import SUFFIX, Spare, Unsettled, left_by
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
    found,
    in_one_line,
    is_open,
    note_used,
    refuse_excess,
    store_answers,
    teacher_of,
)

WAIT = 120.0
"""Seconds that another process may hold the file."""


class Ledger:
    """One file; any number of threads and processes of one machine. It is opened, or made, when first used.

    Args:
        file: where.
        durable: whether what is settled survives a power cut; else only the end of this process, which costs less
            and is enough where asking again costs nothing.
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
        """Nothing in the block happens if it raises; what befalls the file is one line."""
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
        weakref.finalize(self, _close, db, lock, self._spare, os.getpid())
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
        """A transaction that first stores what could not be stored before."""
        with self._lock:
            with self._transaction() as db:
                kept = self._spare.unsettled
                for one in kept:
                    if is_open(db, one.attempt):  # a commit that failed may have been one
                        store_answers(db, one.claim, one.attempt, one.answers)
                yield db
            if kept:
                self._spare.settled()

    def begin(self, run: str, teacher: Described, *, anew: bool = False) -> None:
        """Open a run's accounts.

        Args:
            run: its name.
            teacher: whom it will ask.
            anew: forget what an earlier run of that name used and lost; the purse forgets nothing.

        Raises:
            TeacherError: it has used answers of another teacher, or of another version of this one.
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
                    f"{other[0]}, version {other[1]}, and two teachers are never mixed: artifacts.reuse=false begins "
                    "anew, and pays anew"
                )
            db.execute("UPDATE accounts SET teacher = ? WHERE owner = ?", (me, run))

    def recall(self, claim: Claim, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """What is known of these images, each named once, if the run can afford them all; what it gets, it has used.

        Raises:
            BudgetExceeded: they do not all fit into what is left; nothing has changed.
        """
        with self._up_to_date() as db:
            known, noted = _used(db, claim, keys)
            unknown = [key for key in keys if key not in known]
            paying = len(unknown) - len(flying(db, unknown))
            refuse_excess(db, claim, noted + len(unknown), paying, noted=noted)
            return known

    def reserve(self, claim: Claim, keys: Sequence[bytes]) -> Reserved:
        """Find out which of these images, each named once, must be asked about, and set them aside.

        Raises:
            BudgetExceeded: they do not fit into what is left; nothing has changed.
        """
        with self._up_to_date() as db:
            known, noted = _used(db, claim, keys)
            unknown = [key for key in keys if key not in known]
            others = flying(db, unknown)
            mine = [key for key in unknown if key not in others]
            refuse_excess(db, claim, noted + len(mine), len(mine), noted=noted)
            attempt = self._begin_attempt(db, claim, len(mine)) if mine else None
            db.executemany("INSERT INTO flights VALUES (?, ?)", [(key, attempt) for key in mine])
            return Reserved(attempt, mine, known, [key for key in unknown if key in others])

    def reserve_again(self, claim: Claim, images: int) -> int:
        """Set images aside that are asked about whether they are known or not; the attempt's number.

        Raises:
            BudgetExceeded: they do not fit into what is left.
        """
        with self._up_to_date() as db:
            refuse_excess(db, claim, images, images)
            return self._begin_attempt(db, claim, images)

    def _begin_attempt(self, db: sqlite3.Connection, claim: Claim, images: int) -> int:
        attempt = begin_attempt(db, claim, images, self._me)
        if not claim.certain:  # what was paid for has a place on the disk before it is asked for
            self._spare.secure(attempt, claim, images)
        return attempt

    def settle(self, claim: Claim, attempt: int, answers: Mapping[bytes, Kept]) -> None:
        """Store what was answered: from here on it is paid for, and never asked again.

        Raises:
            TeacherError: the file does not take it; it is kept beside it, and stored when the ledger is next used.
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
        """It was not counted."""
        with self._transaction() as db:
            close_attempt(db, attempt, "released")
        self._spare.free(attempt)

    def doubt(self, attempt: int) -> None:
        """Nobody knows whether it was counted: so it was."""
        with self._transaction() as db:
            close_attempt(db, attempt, "doubt")
        self._spare.free(attempt)

    def fail(self, attempt: int, key: bytes, failed: Failed) -> None:
        """The teacher does not take this image, and did not count it."""
        with self._transaction() as db:
            close_attempt(db, attempt, "released")
            db.execute("INSERT INTO answers (key, told) VALUES (?, ?)", (key, packed(failed)))
        self._spare.free(attempt)

    def adopt(self, claim: Claim, images: int) -> int:
        """Count what ``claim.fit`` used, in whatever run, as used by ``claim.run``, too; how many images that is.

        Args:
            claim: both.
            images: as many as the fit itself says; this ledger knows of fewer where the fit used another.

        Raises:
            BudgetExceeded: they do not fit into what is left.
        """
        assert claim.fit is not None
        with self._transaction() as db:
            run, fit = account_of(db, claim.run, claim.bucket), account_of(db, claim.fit, claim.bucket)
            (known,) = db.execute("SELECT COUNT(*) FROM used WHERE account = ?", (fit,)).fetchone()
            statement = "INSERT OR IGNORE INTO used SELECT ?, answer FROM used WHERE account = ?"
            fresh = db.execute(statement, (run, fit)).rowcount
            if images > known and db.execute("INSERT OR IGNORE INTO used VALUES (?, ?)", (run, -fit)).rowcount:
                fresh += images - known  # once a run
            refuse_excess(db, claim, fresh, 0)
            add(db, run, used=fresh)
            return max(known, images)

    def used(self, owner: str, bucket: Bucket = "training") -> int:
        """How many different images a run or a fit has used."""
        with self._transaction() as db:
            where = (account_of(db, owner, bucket),)
            return int(db.execute("SELECT used FROM accounts WHERE id = ?", where).fetchone()[0])

    def spent(self, run: str) -> dict[str, Spent]:
        """A run's accounts, by bucket."""
        with self._transaction() as db:
            rows = db.execute("SELECT bucket, used, paid, doubt, cost FROM accounts WHERE owner = ?", (run,))
            booked = {name: Spent(int(u), int(p), int(d), float(cost)) for name, u, p, d, cost in rows}
            return {bucket: Spent() for bucket in BUCKETS} | booked

    def keep_canaries(self, teacher: Described, images: Mapping[bytes, np.ndarray], number: int) -> bool:
        """Put the pixels of answered images aside until there are ``number``; whether there are."""
        with self._transaction() as db:
            me = teacher_of(db, teacher)
            (there,) = db.execute("SELECT COUNT(*) FROM canaries WHERE teacher = ?", (me,)).fetchone()
            chosen = found(db, list(images)[: max(0, number - there)])
            for key, (i, _) in chosen.items():
                shape = ",".join(map(str, images[key].shape))
                row = (me, i, shape, images[key].tobytes())
                db.execute("INSERT OR IGNORE INTO canaries VALUES (?, ?, ?, ?)", row)
            return there + len(chosen) >= number

    def canaries(self, teacher: Described, number: int) -> list[tuple[np.ndarray, Kept]]:
        """Images (H, W, C) put aside, with what was answered about them."""
        with self._transaction() as db:
            select = "SELECT shape, image, told FROM canaries JOIN answers ON answer = answers.id WHERE teacher = ?"
            rows = db.execute(f"{select} ORDER BY answer LIMIT ?", (teacher_of(db, teacher), number)).fetchall()
            return [
                (np.frombuffer(image, np.uint8).reshape([int(n) for n in shape.split(",")]), read(told, teacher))
                for shape, image, told in rows
            ]

    def recover(self) -> int:
        """Close the attempts that processes which are gone left open; how many there were."""
        closed = 0
        with self._transaction() as db:
            rows = db.execute("SELECT process, id, certain FROM attempts WHERE state = 'pending'").fetchall()
            others = {process for process, *_ in rows} | {file.stem for file in self._alive.glob("*" + SUFFIX)}
            dead = [process for process in others - {self._me} if _is_dead(self._alive / process)]
            for process in dead:
                for one in left_by(self._alive / (process + SUFFIX)):
                    if (process, one.attempt, one.claim.certain) in rows:
                        rows.remove((process, one.attempt, one.claim.certain))
                        store_answers(db, one.claim, one.attempt, one.answers)
                        closed += 1
            for process, attempt, certain in rows:
                if process in dead:
                    close_attempt(db, attempt, "released" if certain else "doubt")
                    closed += 1
        for process in dead:
            (self._alive / (process + SUFFIX)).unlink(missing_ok=True)
        return closed


def _used(db: sqlite3.Connection, claim: Claim, keys: Sequence[bytes]) -> tuple[dict[bytes, Kept], int]:
    """What is known of these images, noted as used; how many of them the run had not used before."""
    rows = found(db, keys)
    known = {key: read(told, claim.teacher) for key, (_, told) in rows.items()}
    return known, note_used(db, claim, [i for key, (i, _) in rows.items() if not isinstance(known[key], Failed)])


def _is_dead(file: Path) -> bool:
    """Whether the process that held this lock as long as it lived holds it no more."""
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    file.unlink(missing_ok=True)
    return True


def _close(db: sqlite3.Connection, lock: FileLock, spare: Spare, process: int) -> None:
    if os.getpid() == process:  # not a forked child's copy
        db.close()
        with suppress(OSError):
            if not spare.unsettled:
                spare.file.unlink(missing_ok=True)
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
