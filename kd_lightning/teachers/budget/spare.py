"""Disk space reserved for the answers of queries in flight, used when the ledger cannot be written.

The file is kept as large as all answers in flight may need, so they can be saved even if the disk fills up
meanwhile. They move into the ledger later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.budget.tables import Claim

SUFFIX = ".answers"
PER_IMAGE, PER_QUESTION = 200, 2000
"""Upper bound of the bytes per image and per query in addition to the numbers: names, keys and reasons."""


@dataclass(frozen=True)
class Unsettled:
    """The answers to one query that the ledger does not hold yet, and whom to charge."""

    claim: Claim
    attempt: int
    answers: Mapping[bytes, bytes]


class Spare:
    """The reserved file of this process.

    Args:
        file: its path; created when first needed.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.unsettled: list[Unsettled] = []
        self._room: dict[int, int] = {}
        self._size = 0

    def secure(self, attempt: int, claim: Claim, images: int) -> None:
        """Reserve space for the answers to a query, before it is sent.

        Raises:
            OSError: the space is not available.
        """
        self._room[attempt] = PER_QUESTION + images * (PER_IMAGE + 2 * _bytes_of(claim.teacher))
        missing = sum(self._room.values()) - self._size
        try:
            if missing > 0:
                self._write(bytes(missing), self._size)
                self._size += missing
        except OSError:
            del self._room[attempt]
            raise

    def free(self, attempt: int) -> None:
        """Release the space of a query: its answers are in the ledger, or it has none."""
        self._room.pop(attempt, None)

    def keep(self, unsettled: Unsettled) -> None:
        """Keep answers in memory and in the file until the ledger accepts them.

        Raises:
            OSError: the file cannot be written either; the answers are kept in memory.
        """
        self.unsettled.append(unsettled)
        lines = "".join(f"{json.dumps(_plain(one))}\n" for one in self.unsettled)
        self._write(lines.encode() + b"\0", 0, durable=True)

    def settled(self) -> None:
        """Forget all kept answers: the ledger holds them."""
        for one in self.unsettled:
            self.free(one.attempt)
        self.unsettled = []
        self._write(b"\0", 0)  # the file keeps its size, for queries in flight

    def _write(self, content: bytes, at: int, *, durable: bool = False) -> None:
        file = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while content:
                written = os.pwrite(file, content, at)
                content, at = content[written:], at + written
            if durable:
                os.fsync(file)
        finally:
            os.close(file)


def left_by(file: Path) -> list[Unsettled]:
    """Answers that a dead process could not store."""
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\0")[0].splitlines(keepends=True)
    return [_unsettled(json.loads(line)) for line in lines if line.endswith(b"\n")]  # the last line may be truncated


def _bytes_of(teacher: Described) -> int:
    """Size of one answer."""
    return {"label": 9, "topk": 1 + 16 * teacher.k}.get(teacher.access, 1 + 8 * teacher.num_classes)


def _plain(one: Unsettled) -> dict[str, object]:
    answers = {key.hex(): told.hex() for key, told in one.answers.items()}
    return {"claim": asdict(one.claim), "attempt": one.attempt, "answers": answers}


def _unsettled(plain: dict[str, Any]) -> Unsettled:
    teacher = Described(**plain["claim"].pop("teacher"))
    answers = {bytes.fromhex(key): bytes.fromhex(told) for key, told in plain["answers"].items()}
    return Unsettled(Claim(**plain["claim"], teacher=teacher), plain["attempt"], answers)
