"""Limits of a service, the count of its answers, and the cache of repeated queries."""

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
"""Bytes of answers kept for repeated queries; the oldest are dropped first."""


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Args:
        requests_per_minute: queries, None for any number; as many may come at once.
        images_per_minute: images in them.
        waiting: queries in flight at the same time.
        patience: seconds for each of: receiving a head, receiving its body, sending the answer.
        connections: open at the same time.
        connections_per_address: open at the same time from one address.
    """

    requests_per_minute: float | None = None
    images_per_minute: float | None = None
    waiting: int = 32
    patience: float = 30.0
    connections: int = 256
    connections_per_address: int = 64


class Refused(Exception):
    """A refused query.

    Args:
        status: HTTP status, 400 or more.
        code: one word for programs.
        reason: for people: what was wrong and what was expected.
        after: seconds after which to try again.
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
        """The HTTP response."""
        error = {"code": self.code, "reason": str(self), "counted": False}
        return JSONResponse({"error": error}, self.status, self.headers)


class Tally:
    """Counts answers since the start and, if a file is named, appends a line of JSON to it for every query.

    Args:
        file: appended to; a line survives ``kill -9``.

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
        """Count one query.

        Raises:
            OSError: the file cannot be written; nothing is counted.
        """
        if self._file is not None:
            line = json.dumps({"time": round(time.time(), 3), "images": images, "id": identity}) + "\n"
            os.write(self._file, line.encode())
        self.questions += 1
        self.images += images


class Bucket:
    """A token bucket that holds one minute's worth.

    Args:
        per_minute: rate of refill, None for no limit.
        clock: monotonic seconds.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float]) -> None:
        self.size, self.clock = per_minute, clock
        self.level, self.seen = per_minute or 0.0, clock()

    def wait(self, tokens: float) -> float:
        """Seconds until this many tokens are available."""
        if self.size is None:
            return 0.0
        now = self.clock()
        self.level = min(self.size, self.level + (now - self.seen) * self.size / 60)
        self.seen = now
        return max(0.0, tokens - self.level) * 60 / self.size

    def take(self, tokens: float) -> None:
        """Remove tokens."""
        self.level -= tokens


class AnswerCache:
    """Answers by the ID of their query, finished or in flight; the finished ones are bounded in bytes."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self.size, self.held = size, 0
        self.entries: dict[str, tuple[bytes, asyncio.Task[bytes]]] = {}
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of finished answers, oldest first

    def find(self, identity: str, content: bytes) -> asyncio.Task[bytes] | None:
        """The answer to a query with this ID and content, finished or in flight; None if there is none.

        Raises:
            Refused: the ID was used for another query.
        """
        if identity not in self.entries:
            return None
        known, task = self.entries[identity]
        if known != content:
            raise Refused(422, "id", "this Idempotency-Key was used for another query: use one for each")
        return task

    def keep(self, identity: str, content: bytes, task: asyncio.Task[bytes]) -> None:
        """Remember a query and its answer, unless computing the answer fails."""
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
