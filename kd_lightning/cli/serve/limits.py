"""How much a service lets be done to it, what it has answered, and what it remembers."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import JSONResponse, Response

from kd_lightning.errors import UserError

REMEMBERED = 64_000_000
"""Bytes of answers that are kept for questions that are repeated, the oldest are forgotten first."""


@dataclass(frozen=True)
class Limits:
    """What a service lets be done to it.

    Args:
        requests_per_minute: questions, None for any number; as many may come at once.
        images_per_minute: images in them.
        waiting: questions under way at the same time.
        patience: seconds in which the head of a question must arrive, its body, and the answer at who asked.
        connections: open at the same time.
        connections_per_address: of them from one address.
    """

    requests_per_minute: float | None = None
    images_per_minute: float | None = None
    waiting: int = 32
    patience: float = 30.0
    connections: int = 256
    connections_per_address: int = 64


class Refused(Exception):
    """A question that is not answered.

    Args:
        status: of HTTP, 400 or more.
        code: one word for programs.
        reason: for people: what was wrong, what was expected.
        after: seconds after which it may be tried again.
        headers: further ones.
    """

    def __init__(
        self, status: int, code: str, reason: str, after: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.status, self.code, self.headers = status, code, dict(headers or {})
        if after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(after)))

    def response(self) -> Response:
        """As it is sent."""
        error = {"code": self.code, "reason": str(self), "counted": False}
        return JSONResponse({"error": error}, self.status, self.headers)


class Tally:
    """What was answered since the start: a line of JSON for every question in a file, if one is named, and the sums.

    Args:
        file: is appended to; what is in it outlives ``kill -9``.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, file: str | Path | None = None) -> None:
        self.questions = self.images = self.repeated = 0
        try:
            wanted = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._file = None if file is None else os.open(Path(file).expanduser(), wanted, 0o600)
        except OSError as error:
            raise UserError(f"count_file={file}: {error.strerror}") from error

    def add(self, images: int, identity: str | None) -> None:
        """Count one question; OSError, and no change, where that cannot be written down."""
        if self._file is not None:
            line = json.dumps({"time": round(time.time(), 3), "images": images, "id": identity}) + "\n"
            os.write(self._file, line.encode())
        self.questions += 1
        self.images += images


class Bucket:
    """Tokens that refill evenly, a minute's worth at most.

    Args:
        per_minute: None for any number.
        clock: seconds, never going back.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float]) -> None:
        self.size, self.clock = per_minute, clock
        self.level, self.seen = per_minute or 0.0, clock()

    def wait(self, tokens: float) -> float:
        """Seconds until so many are there."""
        if self.size is None:
            return 0.0
        now = self.clock()
        self.level = min(self.size, self.level + (now - self.seen) * self.size / 60)
        self.seen = now
        return max(0.0, tokens - self.level) * 60 / self.size

    def take(self, tokens: float) -> None:
        """Use some."""
        self.level -= tokens


class Memory:
    """Answers by the ID of their question, those under way among them; bounded by the bytes of those that are there."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self.size, self.held = size, 0
        self.entries: dict[str, tuple[bytes, asyncio.Task[bytes]]] = {}
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of the answers that are there, the oldest first

    def find(self, identity: str, content: bytes) -> asyncio.Task[bytes] | None:
        """The answer to this question, or nothing.

        Raises:
            Refused: the ID was another question's.
        """
        if identity not in self.entries:
            return None
        known, task = self.entries[identity]
        if known != content:
            raise Refused(422, "id", "this Idempotency-Key was that of another question: use one for each")
        return task

    def keep(self, identity: str, content: bytes, task: asyncio.Task[bytes]) -> None:
        """Remember a question from now on, and its answer when it is there; one that fails is forgotten."""
        self.entries[identity] = content, task
        task.add_done_callback(lambda done: self._done(identity, done))

    def _done(self, identity: str, task: asyncio.Task[bytes]) -> None:
        if task.cancelled() or task.exception() is not None:
            del self.entries[identity]
            return
        self._sizes[identity] = len(task.result())
        self.held += self._sizes[identity]
        while self.held > self.size:
            oldest, size = self._sizes.popitem(last=False)
            self.held -= size
            del self.entries[oldest]
