"""Rate limits, waiting after a refusal, and when to give up."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kd_lightning.errors import TeacherError
from kd_lightning.teachers.answer_types import Busy, Unclear

FIRST, LONGEST = 1.0, 60.0
"""Seconds: longest wait after the first failure, which doubles with each further one, and its upper bound."""

SLOWER = "teacher.pace.requests_per_minute=N, or images_per_minute, keeps below a limit"


@dataclass(frozen=True)
class Pace:
    """Limits on the load that a run puts on a teacher.

    Args:
        requests_per_minute: most queries, refused ones included; None for any number.
        images_per_minute: most images in them.
        concurrency: queries in flight at the same time.
        tries: attempts at one query.
        failures: attempts in a row that brought no answer and may have been paid for, over all queries, after which the
            run gives up. Refusals cost nothing and count for their own query only.
        longest_wait: seconds that a query waits for a limited rate, and longest ``Retry-After``; for more the run ends.
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
        self._said = False

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
        """Wait before the next attempt at a query: exponential backoff with full jitter, half of it for a limited rate.

        Args:
            error: why there was no answer; its ``retry_after`` holds for all threads.
            tried: attempts so far.
            stop: ends the wait.

        Raises:
            TeacherError: the number of attempts or of failures in a row is reached, or the wait is too long.
        """
        if (asked := error.retry_after or 0.0) > self.pace.longest_wait:
            raise TeacherError(
                f"the teacher asks for a pause of {asked:.0f} seconds, teacher.pace.longest_wait="
                f"{self.pace.longest_wait:g} allows fewer: {error}. Its answers so far are stored; the same command, "
                "later, goes on from there"
            )
        if isinstance(error, Busy) and error.limited:
            self._wait_for_rate(error, tried, stop)
            return
        with self._lock:
            self._failed += isinstance(error, Unclear)
            failed = self._failed
            if error.retry_after is not None:
                self._not_before = max(self._not_before, self.clock() + error.retry_after)
        if tried >= self.pace.tries or failed >= self.pace.failures:
            raise TeacherError(
                f"the teacher did not answer, {max(failed, tried)} times in a row: {error}. Its answers so far are "
                "stored; the same command goes on from there"
            )
        self.wait(max(error.retry_after or 0.0, self.random() * _ceiling(tried)), stop)

    def _wait_for_rate(self, error: Busy, tried: int, stop: threading.Event) -> None:
        """Hold all threads back for a while: the teacher answers fewer queries than it is sent."""
        if sum(_ceiling(n) for n in range(1, tried + 1)) > self.pace.longest_wait:
            raise TeacherError(
                f"the teacher limits its rate, and {tried} attempts within teacher.pace.longest_wait="
                f"{self.pace.longest_wait:g} seconds were refused: {error}. {SLOWER}. Its answers so far are stored; "
                "the same command goes on from there"
            )
        seconds = max(error.retry_after or 0.0, (1 + self.random()) / 2 * _ceiling(tried))
        with self._lock:
            said, self._said = self._said, True
            self._not_before = max(self._not_before, self.clock() + seconds)
        if not said:
            print(f"the teacher limits its rate, and is asked again after a while: {error}. {SLOWER}", file=sys.stderr)
        self.wait(seconds, stop)

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Sleep, at most this many seconds."""
        (self.sleep or stop.wait)(seconds)


def _ceiling(tried: int) -> float:
    return min(LONGEST, FIRST * 2 ** (tried - 1))


class Stopped(Exception):
    """Raised in a thread because another one has given up; that one reports the reason."""
