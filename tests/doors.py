"""Teachers behind a door that cost nothing: they count what they answered, as a provider would."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_lightning.errors import BudgetExceeded, TeacherError
from kd_lightning.teachers.access import told, usable
from kd_lightning.teachers.answer_types import Answer, Busy, Described, Label, Probs, Unanswered, Unclear
from kd_lightning.teachers.black_box import QueryTeacher
from kd_lightning.teachers.remote.client import LedgerClient, QueryTerms


def pictures(*values: int) -> np.ndarray:
    """Images uint8 (N, 1, 1, 1), each known by its value."""
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


class Fake:
    """Says ``value % classes`` of every image; raises what ``troubles`` holds instead, one at each attempt.

    Args:
        file: count there as well, for other processes.
        troubles: an exception, an answering function or None, for one attempt after the other.
    """

    def __init__(self, *, file: Path | None = None, troubles: Iterator[Any] | None = None, **described: Any) -> None:
        settings = {"name": "fake", "version": "1", "access": "label", "num_classes": 3, "max_batch": 4, **described}
        self.described = Described(**settings)
        self.file, self.troubles = file, iter(()) if troubles is None else troubles
        self.answered = self.attempts = 0
        self.seen: list[int] = []
        self.lock = threading.Lock()

    def describe(self) -> Described:
        return self.described

    def ask(self, images: np.ndarray) -> Sequence[Answer]:
        assert images.dtype == np.uint8
        assert len(images) <= self.described.max_batch
        with self.lock:
            self.attempts += 1
            trouble = next(self.troubles, None)
        if isinstance(trouble, Unanswered) and not isinstance(trouble, Unclear):
            raise trouble
        self.count(images)
        if trouble is not None:
            if isinstance(trouble, BaseException):
                raise trouble
            return trouble(images)
        return [self.say(image) for image in images]

    def say(self, image: np.ndarray) -> Answer:
        value = int(image.flat[0])
        if self.described.access == "label":
            return Label(value % self.described.num_classes)
        return Probs(tuple((torch.arange(3) == value % 3).float().mul(0.7).add(0.1).tolist()))

    def count(self, images: np.ndarray) -> None:
        with self.lock:
            self.answered += len(images)
            self.seen += images.reshape(len(images), -1)[:, 0].tolist()
        if self.file is not None:
            written = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(written, images.reshape(len(images), -1)[:, :1].tobytes())
            os.close(written)


class Tells:
    """Answers with the rows of a function of float images (N, C, H, W)."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, access: str = "logits", classes: int = 3) -> None:
        self.function = function
        self.described = Described("function", "1", access, classes, max_batch=10_000)  # type: ignore[arg-type]
        self.sizes: list[int] = []

    def describe(self) -> Described:
        return self.described

    def ask(self, images: np.ndarray) -> Sequence[Answer]:
        self.sizes.append(len(images))
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
        return [Probs(tuple(row)) for row in self.function(x).tolist()]


def asking(
    client: Any, folder: Path, *, at_home: bool = False, pace: Any = None, gate: Any = None, **terms: Any
) -> LedgerClient:
    """An client and a ledger in ``folder``; it never really sleeps unless ``gate`` says so."""
    gate = {"sleep": lambda seconds: None} if gate is None else gate
    return LedgerClient(
        client, folder / "ledger.sqlite", QueryTerms(**{"run": "run", **terms}), at_home=at_home, pace=pace, **gate
    )


def closed(client: Any, folder: Path, **terms: Any) -> QueryTeacher:
    """What a method is handed."""
    door = asking(client, folder, **terms)
    return QueryTeacher(door, door.described, budget=door.terms.budget)


def pays(folder: str, seed: int, budget: int, total_budget: int, troubled: bool) -> None:
    """A worker: asks about random images, some of them twice, of a teacher that is troubled, until nothing is left."""
    rng = random.Random(seed)

    def troubles() -> Any:
        while True:
            time.sleep(rng.random() * 0.003)
            yield rng.choice([None, None, Busy("busy"), Unclear("gone")]) if troubled else None

    client = Fake(file=Path(folder) / "count", troubles=troubles())
    gate = {"sleep": lambda seconds: time.sleep(min(seconds, 0.01))}
    door = asking(client, Path(folder), run=f"run{seed % 2}", budget=budget, total_budget=total_budget, gate=gate)

    def work(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(8):
            try:
                door.about(pictures(*(own.randrange(120) for _ in range(own.randrange(1, 12)))))
            except (BudgetExceeded, TeacherError):
                continue

    threads = [threading.Thread(target=work, args=(100 * seed + i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def asks_until_it_hangs(folder: str, answers: int, at_home: bool) -> None:
    """A worker: asks about forty images of a teacher that counts every question, and answers so many of them."""
    hangs = repeat(lambda images: time.sleep(3600))
    client = Fake(file=Path(folder) / "count", troubles=chain(repeat(None, answers), hangs))
    asking(client, Path(folder), at_home=at_home, budget=60).about(pictures(*range(40)))


def degrade(logits: Tensor, access: Any, *, decimals: int | None = None, k: int = 5, smoothing: float = 0.1) -> Tensor:
    """What is left of logits at an access level, again usable as logits."""
    described = Described("net", "1", access, logits.shape[1], decimals=decimals, k=k)
    return usable(told(logits, access, decimals=decimals, k=k), described, smoothing=smoothing)
