"""The teacher's client in a dry run: counts what would be queried and paid, without querying a service."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import numpy as np
from torch import Tensor

from kd_lightning.teachers.answer_types import Answer, Described, Label, Probs, TopK
from kd_lightning.teachers.black_box import channels_last
from kd_lightning.teachers.budget.codec import Kept, keys_of, read
from kd_lightning.teachers.budget.tables import Bucket, Spent, found, in_one_line
from kd_lightning.teachers.remote.client import LedgerClient

TRIED = 500
"""Most images with which a network in this process is really queried, to time it."""


class Planned:
    """Answers from the cache; else from a network in this process, if there is one, else with arbitrary answers.

    Args:
        asking: the real client.
        promised: keys that earlier jobs of a sweep will have paid for; extended by this run's.
    """

    def __init__(self, asking: LedgerClient, promised: set[str]) -> None:
        self.described, self.promised = asking.described, promised
        self._asker = asking.client if asking.at_home else None
        self._file = asking.ledger.file
        self._used: dict[str | None, set[bytes]] = {}
        self._adopted = 0
        self.paid: set[bytes] = set()
        self.unpaid: set[bytes] = set()
        self.seconds = 0.0
        """Of one image."""

    def about(self, images: np.ndarray, *, bucket: Bucket = "training", fit: str | None = None) -> list[Kept]:
        """Answers to images uint8 (N, H, W, C), not necessarily the teacher's."""
        keys = keys_of(self.described, images)
        known = self._look(keys)
        self._used.setdefault(fit, set()).update(keys)
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            said = self._said(images[missing[:TRIED]], len(missing))
            known |= {keys[i]: answer for i, answer in zip(missing, said, strict=True)}
        return [known[key] for key in keys]

    def needed(self, images: Tensor) -> int:
        """Number of different images among uint8 (N, C, H, W)."""
        return len(set(keys_of(self.described, channels_last(images))))

    def look(self, images: Tensor) -> int:
        """Number of different images among uint8 (N, C, H, W) that are not paid for yet."""
        before = len(self.unpaid)
        self._look(keys_of(self.described, channels_last(images)))
        return len(self.unpaid) - before

    def unseen(self, name: str, number: int) -> int:
        """Number of unpaid images among ``number`` not yet generated: all, or none if ``name`` was promised before."""
        keys, before = {f"{name}:{i}".encode() for i in range(number)}, len(self.unpaid)
        self._used.setdefault(name, set()).update(keys)
        self.unpaid |= {key for key in keys if key.hex() not in self.promised}
        self.promised |= {key.hex() for key in keys}
        return len(self.unpaid) - before

    def _look(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        with in_one_line(self._file):
            stored = _stored(self._file, keys)
            known = {key: read(told, self.described) for key, (_, told) in stored.items()}
        self.paid |= known.keys()
        for key in keys:
            if key not in known and key not in self.unpaid and key.hex() not in self.promised:
                self.unpaid.add(key)
                self.promised.add(key.hex())
        return known

    def asked(self, fit: str | None = None) -> int:
        """Number of different images so far."""
        return len(self._used.get(fit, ()))

    def in_all(self) -> int:
        """Number of different images so far, over all fits."""
        return len(set().union(*self._used.values())) + self._adopted

    def adopt(self, fit: str, images: int) -> int:
        """The number that the fit reports."""
        if fit not in self._used:
            self._adopted += images
        return images

    def spent(self) -> dict[str, Spent]:
        """Empty: nothing is spent."""
        return {}

    def _said(self, images: np.ndarray, number: int) -> list[Kept]:
        if self._asker is None:
            return [_anything(self.described, i) for i in range(number)]
        start = time.perf_counter()
        told = self._asker.ask(images)
        self.seconds = (time.perf_counter() - start) / len(images)
        return [told[i % len(told)] for i in range(number)]


def _stored(file: Path, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
    if not file.is_file():
        return {}
    how = "mode=rw" if os.access(file.parent, os.W_OK) else "immutable=1"  # mode=ro would leave its own files
    with closing(sqlite3.connect(f"file:{quote(str(file))}?{how}", uri=True, timeout=60)) as db:
        return found(db, keys)


def _anything(teacher: Described, i: int) -> Answer:
    classes = teacher.num_classes
    label = i % classes
    if teacher.access == "label":
        return Label(label)
    if teacher.access == "topk":
        return TopK((label,), (0.9,))
    return Probs(tuple(0.9 if c == label else 0.1 / max(1, classes - 1) for c in range(classes)))
