"""Rate limits, waiting after a refusal, and when to give up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kd_lightning.errors import TeacherError
from kd_lightning.teachers.answer_types import Busy, Unclear

FIRST, LONGEST = 1.0, 60.0
"""Seconds: longest wait after the first failure, which doubles with each further one, and its upper bound."""


@dataclass(frozen=True)
class Pace:
    """Limits on the load that a run puts on a teacher.

    Args:
        requests_per_minute: most queries, refused ones included; None for any number.
        images_per_minute: most images in them.
        concurrency: queries in flight at the same time.
        tries: attempts at one query.
        failures: failed attempts in a row, over all queries, after which the run gives up.
        longest_wait: longest ``Retry-After`` in seconds that the run waits for; for more it ends.
    """

    requests_per_minute: float | None = None
    images_per_minute: float | None = None
    concurrency: int = 4
    tries: int = 7
    failures: int = 10
    longest_wait: float = 600.0


class RateLimiter:
    """Delays queries to keep the pace; shared by the threads of one process.

    Args:
        pace: the limits.
        clock: monotonic seconds.
        sleep: waits so many seconds; the default also returns when another thread gives up.
        random: uniform in [0, 1).
    """

    def __init__(
        self,
        pace: Pace,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.pace, self.clock, self.sleep, self.random = pace, clock, sleep, random
        self._lock = threading.Lock()
        self._next_request = self._next_image = self._not_before = float("-inf")
        self._failed = 0

    def enter(self, images: int, stop: threading.Event) -> None:
        """Wait until a query with this many images may be sent. The token buckets hold one query.

        Raises:
            Stopped: ``stop`` is set.
        """
        while True:
            with self._lock:
                now = self.clock()
                wait = max(self._next_request, self._next_image, self._not_before) - now
                if wait <= 0:
                    if self.pace.requests_per_minute:
                        self._next_request = now + 60 / self.pace.requests_per_minute
                    if self.pace.images_per_minute:
                        self._next_image = now + 60 * images / self.pace.images_per_minute
            if stop.is_set():
                raise Stopped
            if wait <= 0:
                return
            self.wait(wait, stop)

    def answered(self) -> None:
        """Reset the count of consecutive failures."""
        with self._lock:
            self._failed = 0

    def refused(self, error: Busy | Unclear, tried: int, stop: threading.Event) -> None:
        """Wait before the next attempt at a query: exponential backoff with full jitter.

        Args:
            error: why there was no answer; its ``retry_after`` holds for all threads.
            tried: attempts so far.
            stop: ends the wait.

        Raises:
            TeacherError: the number of attempts or of failures in a row is reached, or ``Retry-After`` is too long.
        """
        if (asked := error.retry_after or 0.0) > self.pace.longest_wait:
            raise TeacherError(
                f"the teacher asks for a pause of {asked:.0f} seconds, teacher.pace.longest_wait="
                f"{self.pace.longest_wait:g} allows fewer: {error}. Its answers so far are stored; the same command, "
                "later, goes on from there"
            )
        with self._lock:
            self._failed += 1
            failed = self._failed
            if error.retry_after is not None:
                self._not_before = max(self._not_before, self.clock() + error.retry_after)
        if tried >= self.pace.tries or failed >= self.pace.failures:
            raise TeacherError(
                f"the teacher did not answer, {failed} times in a row: {error}. Its answers so far are stored; the "
                "same command goes on from there"
            )
        self.wait(max(error.retry_after or 0.0, self.random() * min(LONGEST, FIRST * 2 ** (tried - 1))), stop)

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Sleep, at most this many seconds."""
        (self.sleep or stop.wait)(seconds)


class Stopped(Exception):
    """Raised in a thread because another one has given up; that one reports the reason."""
