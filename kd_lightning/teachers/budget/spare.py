"""Room on the disk for answers that are on their way: what cannot go into the ledger goes there, and later into it.

A file is kept at the size that all answers under way may need, so a disk that fills up meanwhile can still hold them.
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
"""Bytes beside the numbers of an answer, and of a question: names, keys and reasons."""


@dataclass(frozen=True)
class Unsettled:
    """What was answered to one question, and on whose account."""

    claim: Claim
    attempt: int
    answers: Mapping[bytes, bytes]


class Spare:
    """This process's file.

    Args:
        file: where; it is made when first needed.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.unsettled: list[Unsettled] = []
        self._room: dict[int, int] = {}
        self._size = 0

    def secure(self, attempt: int, claim: Claim, images: int) -> None:
        """Have room for the answers to a question before it is asked.

        Raises:
            OSError: there is none.
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
        """Its answers are in the ledger, or there are none."""
        self._room.pop(attempt, None)

    def keep(self, unsettled: Unsettled) -> None:
        """Remember it, in memory and in the file, until the ledger takes it.

        Raises:
            OSError: the file does not take it either; in memory it is.
        """
        self.unsettled.append(unsettled)
        lines = "".join(f"{json.dumps(_plain(one))}\n" for one in self.unsettled)
        self._write(lines.encode() + b"\0", 0, durable=True)

    def settled(self) -> None:
        """The ledger has it all."""
        for one in self.unsettled:
            self.free(one.attempt)
        self.unsettled = []
        self._write(b"\0", 0)  # the room stays, for what is under way

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
    """What a process that is gone could not settle."""
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\0")[0].splitlines(keepends=True)
    return [_unsettled(json.loads(line)) for line in lines if line.endswith(b"\n")]  # the last may be cut off


def _bytes_of(teacher: Described) -> int:
    """Of one answer."""
    return {"label": 9, "topk": 1 + 16 * teacher.k}.get(teacher.access, 1 + 8 * teacher.num_classes)


def _plain(one: Unsettled) -> dict[str, object]:
    answers = {key.hex(): told.hex() for key, told in one.answers.items()}
    return {"claim": asdict(one.claim), "attempt": one.attempt, "answers": answers}


def _unsettled(plain: dict[str, Any]) -> Unsettled:
    teacher = Described(**plain["claim"].pop("teacher"))
    answers = {bytes.fromhex(key): bytes.fromhex(told) for key, told in plain["answers"].items()}
    return Unsettled(Claim(**plain["claim"], teacher=teacher), plain["attempt"], answers)
