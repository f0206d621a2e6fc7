"""How fast and how often a teacher is asked: rates, waiting after a refusal, and when to give up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kd_lightning.errors import TeacherError
from kd_lightning.teachers.answer_types import Busy, Unclear

FIRST, LONGEST = 1.0, 60.0
"""Seconds that are waited for after the first failure, at most, and after any."""


@dataclass(frozen=True)
class Pace:
    """What a teacher may be burdened with.

    Args:
        requests_per_minute: most questions, None for any number; refused ones count.
        images_per_minute: most images in them.
        concurrency: questions under way at the same time.
        tries: of one question.
        failures: in a row, of whatever questions, after which nothing more is asked.
        longest_wait: seconds that a teacher may ask to be left alone for (``Retry-After``); for more the run ends.
    """

    requests_per_minute: float | None = None
    images_per_minute: float | None = None
    concurrency: int = 4
    tries: int = 7
    failures: int = 10
    longest_wait: float = 600.0


class Gate:
    """Lets questions through at a pace; shared by the threads of one process.

    Args:
        pace: which.
        clock: seconds, never going back.
        sleep: waits so many seconds; default until then, or until somebody else gives up.
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
        """Wait until a question about so many images may be sent; the buckets of tokens hold one question.

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
        """A question was: failures are no longer in a row."""
        with self._lock:
            self._failed = 0

    def refused(self, error: Busy | Unclear, tried: int, stop: threading.Event) -> None:
        """Wait before the same question is asked again: full jitter under a doubling ceiling.

        Args:
            error: why it was not answered; nobody asks before the time it names.
            tried: how often so far.
            stop: ends the waiting.

        Raises:
            TeacherError: that was often enough.
        """
        if (asked := error.retry_after or 0.0) > self.pace.longest_wait:
            raise TeacherError(
                f"the teacher asks to be left alone for {asked:.0f} seconds, teacher.pace.longest_wait="
                f"{self.pace.longest_wait:g} allows fewer: {error}. What it did answer is stored; the same command, "
                "later, goes on from there"
            )
        with self._lock:
            self._failed += 1
            failed = self._failed
            if error.retry_after is not None:
                self._not_before = max(self._not_before, self.clock() + error.retry_after)
        if tried >= self.pace.tries or failed >= self.pace.failures:
            raise TeacherError(
                f"the teacher did not answer, {failed} times in a row: {error}. What it did answer is stored; the same "
                "command goes on from there"
            )
        self.wait(max(error.retry_after or 0.0, self.random() * min(LONGEST, FIRST * 2 ** (tried - 1))), stop)

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Some time, or less."""
        (self.sleep or stop.wait)(seconds)


class Stopped(Exception):
    """Another thread has given up, and says why."""
