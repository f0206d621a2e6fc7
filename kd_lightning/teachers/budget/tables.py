"""The tables of a ledger, and the operations on them that must happen inside one transaction."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kd_lightning.errors import BudgetExceeded, TeacherError
from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.budget.codec import Failed, Kept, read

Bucket = Literal["training", "evaluation", "canary"]
BUCKETS: tuple[Bucket, ...] = ("training", "evaluation", "canary")
FORMAT = 1
UNREACHABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR)
MANY = 500
"""Largest number of values in one SELECT."""
SCHEMA = """
CREATE TABLE teachers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, UNIQUE (name, version));
CREATE TABLE purses (name TEXT PRIMARY KEY, pending INTEGER NOT NULL DEFAULT 0, doubt INTEGER NOT NULL DEFAULT 0,
    paid INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE accounts (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, bucket TEXT NOT NULL, teacher INTEGER,
    used INTEGER NOT NULL DEFAULT 0, pending INTEGER NOT NULL DEFAULT 0, doubt INTEGER NOT NULL DEFAULT 0,
    paid INTEGER NOT NULL DEFAULT 0, cost REAL NOT NULL DEFAULT 0, UNIQUE (owner, bucket));
CREATE TABLE attempts (id INTEGER PRIMARY KEY, account INTEGER NOT NULL, teacher INTEGER NOT NULL,
    images INTEGER NOT NULL, price REAL NOT NULL, state TEXT NOT NULL, process TEXT NOT NULL,
    certain INTEGER NOT NULL, time REAL NOT NULL);
CREATE INDEX open ON attempts (state) WHERE state = 'pending';
CREATE TABLE flights (key BLOB PRIMARY KEY, attempt INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX flown ON flights (attempt);
CREATE TABLE answers (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, attempt INTEGER, told BLOB NOT NULL);
CREATE TABLE used (account INTEGER NOT NULL, answer INTEGER NOT NULL, PRIMARY KEY (account, answer)) WITHOUT ROWID;
CREATE TABLE canaries (teacher INTEGER NOT NULL, answer INTEGER NOT NULL, shape TEXT NOT NULL, image BLOB NOT NULL,
    PRIMARY KEY (teacher, answer)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Claim:
    """Whom to charge for a query, and the limits.

    Args:
        run: its name; its fits, threads and processes share the limit.
        bucket: the account to charge.
        teacher: the teacher to query.
        limit: most images that the run may use in this bucket: different images, whoever paid for them, and every
            attempt of its own that ended in doubt.
        total_budget: most images ever paid for from this ledger for a teacher of this name.
        fit: a fit that uses the images too, so that another run which reuses the fit counts them as well.
        certain: only this process counts the images: what it leaves open when killed was not spent.
    """

    run: str
    bucket: Bucket
    teacher: Described
    limit: int | None = None
    total_budget: int | None = None
    fit: str | None = None
    certain: bool = False


@dataclass(frozen=True)
class Spent:
    """One account: images used, paid for by this run itself and in doubt, and the cost of those it paid for."""

    used: int = 0
    paid: int = 0
    in_doubt: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Reserved:
    """The result of a reservation.

    Args:
        attempt: its number, to settle, release or doubt; None if there is nothing to query.
        mine: keys to query now.
        known: answers in the ledger, and images that the teacher rejects.
        elsewhere: keys that another thread or process is querying now.
    """

    attempt: int | None
    mine: list[bytes]
    known: dict[bytes, Kept]
    elsewhere: list[bytes]


@contextmanager
def in_one_line(file: Path) -> Iterator[None]:
    """Turn any failure of the ledger's file inside the block into one line with advice that costs nothing.

    Raises:
        TeacherError: the file is locked, unreadable or damaged, the disk is full, or a row is invalid.
    """
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, TypeError, LookupError, OverflowError, AssertionError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space there and give the same command again, which pays for nothing twice"
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            advice = "another process holds it: end that one and give the same command again"
        elif isinstance(error, OSError) or code in UNREACHABLE:
            advice = (
                f"make it and its folder readable and writable, or copy it with {file.name}-wal and {file.name}.open "
                "and name the copy by teacher.ledger=FILE"
            )
        else:
            advice = (
                "it is damaged, or not a ledger: restore a copy of it. teacher.ledger=FILE names another one, but "
                "answers that it does not hold are paid for again"
            )
        raise TeacherError(f"{file} cannot be used as a ledger ({reason}): {advice}") from error


def teacher_of(db: sqlite3.Connection, teacher: Described) -> int:
    """Row number of a teacher, inserted if it is new."""
    where = (teacher.name, teacher.version)
    found = db.execute("SELECT id FROM teachers WHERE name = ? AND version = ?", where).fetchone()
    return found[0] if found else _inserted(db, "INSERT INTO teachers (name, version) VALUES (?, ?)", where)


def account_of(db: sqlite3.Connection, owner: str, bucket: str) -> int:
    """Row number of an account, inserted empty if it is new."""
    found = db.execute("SELECT id FROM accounts WHERE owner = ? AND bucket = ?", (owner, bucket)).fetchone()
    return found[0] if found else _inserted(db, "INSERT INTO accounts (owner, bucket) VALUES (?, ?)", (owner, bucket))


def _inserted(db: sqlite3.Connection, statement: str, row: Sequence[Any]) -> int:
    number = db.execute(statement, row).lastrowid
    assert number is not None
    return number


def among(db: sqlite3.Connection, select: str, values: Sequence[Any], *given: Any) -> Iterator[tuple[Any, ...]]:
    """Rows of ``select``, whose ``{}`` stands for a chunk of ``values`` and any ``?`` before it for ``given``."""
    for start in range(0, len(values), MANY):
        part = values[start : start + MANY]
        yield from db.execute(select.format(",".join("?" * len(part))), (*given, *part))


def flying(db: sqlite3.Connection, keys: Sequence[bytes]) -> set[bytes]:
    """The keys among these that some thread or process is querying now."""
    return {key for (key,) in among(db, "SELECT key FROM flights WHERE key IN ({})", keys)}


def found(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
    """Key -> (row number, packed answer), for the keys that have an answer."""
    rows = among(db, "SELECT key, id, told FROM answers WHERE key IN ({})", keys)
    return {key: (i, told) for key, i, told in rows}


def note_used(db: sqlite3.Connection, claim: Claim, answers: Sequence[int]) -> int:
    """Note that the run, and its fit, use these answers; returns how many the run had not used before."""
    fresh = 0
    for owner in (claim.fit, claim.run):
        if owner is not None and answers:
            account = account_of(db, owner, claim.bucket)
            rows = [(account, i) for i in answers]
            fresh = db.executemany("INSERT OR IGNORE INTO used VALUES (?, ?)", rows).rowcount
            if fresh:
                add(db, account, used=fresh)
    return fresh


def recall(db: sqlite3.Connection, claim: Claim, keys: Sequence[bytes]) -> tuple[dict[bytes, Kept], int]:
    """Known answers by key, noted as used; and how many of them the run had not used before."""
    rows = found(db, keys)
    known = {key: read(told, claim.teacher) for key, (_, told) in rows.items()}
    return known, note_used(db, claim, [i for key, (i, _) in rows.items() if not isinstance(known[key], Failed)])


def store_answers(db: sqlite3.Connection, claim: Claim, attempt: int, answers: Mapping[bytes, bytes]) -> None:
    """Book an attempt as paid and store its packed answers under their keys."""
    close_attempt(db, attempt, "paid")
    rows = [(key, attempt, told) for key, told in answers.items()]
    db.executemany("INSERT INTO answers (key, attempt, told) VALUES (?, ?, ?)", rows)
    note_used(db, claim, [i for i, _ in found(db, list(answers)).values()])


def add(db: sqlite3.Connection, account: int, **changes: float) -> None:
    """Add amounts to columns of an account."""
    sets = ", ".join(f"{column} = {column} + ?" for column in changes)
    db.execute(f"UPDATE accounts SET {sets} WHERE id = ?", (*changes.values(), account))


def _pay(db: sqlite3.Connection, name: str, *, pending: int, doubt: int = 0, paid: int = 0) -> None:
    db.execute("INSERT OR IGNORE INTO purses (name) VALUES (?)", (name,))
    sets = "pending = pending + ?, doubt = doubt + ?, paid = paid + ?"
    db.execute(f"UPDATE purses SET {sets} WHERE name = ?", (pending, doubt, paid, name))


def refuse_excess(db: sqlite3.Connection, claim: Claim, wanted: int, unpaid: int, *, noted: int = 0) -> None:
    """Check a query against the limits of the run and of the ledger.

    Args:
        db: in a transaction.
        claim: account and limits.
        wanted: images that the run has not used yet.
        unpaid: those of them that nobody has paid for.
        noted: those of them already noted as used in this transaction.

    Raises:
        BudgetExceeded: says what is spent and what to change.
    """
    spent, doubt = db.execute(
        "SELECT used + pending + doubt, doubt FROM accounts WHERE id = ?",
        (account_of(db, claim.run, claim.bucket),),
    ).fetchone()
    spent -= noted
    if claim.limit is not None and wanted and spent + wanted > claim.limit:
        name = "budget" if claim.bucket == "training" else "eval_budget"
        raise BudgetExceeded(
            f"teacher.{name}={claim.limit} images: {spent} asked{f' ({doubt} never answered)' if doubt else ''}, "
            f"{wanted} more wanted. Raise teacher.{name}, or ask once about fewer and train on the stored answers "
            "with source=queried source.images=N"
        )
    row = db.execute("SELECT pending + doubt + paid FROM purses WHERE name = ?", (claim.teacher.name,)).fetchone()
    if claim.total_budget is not None and unpaid and (row[0] if row else 0) + unpaid > claim.total_budget:
        raise BudgetExceeded(
            f"teacher.total_budget={claim.total_budget} images of {claim.teacher.name} for all runs together: "
            f"{row[0] if row else 0} paid, {unpaid} more wanted. Raise teacher.total_budget, or ask about fewer"
        )


def begin_attempt(db: sqlite3.Connection, claim: Claim, images: int, process: str) -> int:
    """Open an attempt that reserves this many images; returns its number."""
    account = account_of(db, claim.run, claim.bucket)
    add(db, account, pending=images)
    _pay(db, claim.teacher.name, pending=images)
    row = (account, teacher_of(db, claim.teacher), images, claim.teacher.price, process, claim.certain, time.time())
    return _inserted(
        db,
        "INSERT INTO attempts (account, teacher, images, price, process, certain, time, state)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 'pending')",
        row,
    )


def is_open(db: sqlite3.Connection, attempt: int) -> bool:
    """Whether an attempt is still pending."""
    return db.execute("SELECT 1 FROM attempts WHERE id = ? AND state = 'pending'", (attempt,)).fetchone() is not None


def close_attempt(db: sqlite3.Connection, attempt: int, state: Literal["paid", "doubt", "released"]) -> None:
    """Book a pending attempt, and charge the account and the teacher's total."""
    account, name, images, price, before = db.execute(
        "SELECT account, name, images, price, state FROM attempts JOIN teachers ON teacher = teachers.id"
        " WHERE attempts.id = ?",
        (attempt,),
    ).fetchone()
    assert before == "pending", f"attempt {attempt} was {before}"
    db.execute("UPDATE attempts SET state = ?, time = ? WHERE id = ?", (state, time.time(), attempt))
    db.execute("DELETE FROM flights WHERE attempt = ?", (attempt,))
    booked = {} if state == "released" else {state: images}
    add(db, account, pending=-images, **booked, cost=images * price if state == "paid" else 0.0)
    _pay(db, name, pending=-images, **booked)
