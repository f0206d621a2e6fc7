"""The client of a query-only teacher: queries each image once, within the budget, with rate limits and retries."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kd_lightning.core.mapped import let_go
from kd_lightning.errors import TeacherError
from kd_lightning.teachers.access import malformed, usable
from kd_lightning.teachers.answer_types import Abstained, Busy, Closed, Described, TeacherClient, Unclear, Unfit
from kd_lightning.teachers.budget.codec import Failed, Kept, keys_of
from kd_lightning.teachers.budget.ledger import Ledger
from kd_lightning.teachers.budget.rate_limit import Pace, RateLimiter
from kd_lightning.teachers.budget.tables import Bucket, Claim, Spent

DRIFT = 0.02
"""Largest mean total variation distance between old and new answers to the drift checks of an unchanged teacher."""
AGAIN = 0.2
"""Seconds between two checks for the answers to images that another process is querying."""


@dataclass(frozen=True)
class QueryTerms:
    """The limits of a run's queries.

    Args:
        run: its name, which is charged.
        budget: most images that it may use in training; None for any number.
        total_budget: most images that all runs together may ever pay for.
        eval_budget: most images that it may use to evaluate the teacher.
        drift_checks: images queried again before the first new one, to detect that the teacher has changed.
        anew: forget what an earlier run of this name used.
    """

    run: str
    budget: int | None = None
    total_budget: int | None = None
    eval_budget: int = 0
    drift_checks: int = 0
    anew: bool = False


class LedgerClient:
    """A teacher with its cached answers and the limits of this run.

    Args:
        client: makes single attempts.
        ledger: file of the cached answers and accounts, opened when first needed.
        terms: the limits of this run.
        pace: rate limits.
        at_home: the client is a network in this process: nobody else counts its answers, they can be computed again,
            and one query at a time keeps it busy.
        **gate: clock, sleep and randomness, see :class:`~kd_lightning.teachers.budget.rate_limit.RateLimiter`.
    """

    def __init__(
        self,
        client: TeacherClient,
        ledger: str | Path,
        terms: QueryTerms,
        *,
        pace: Pace | None = None,
        at_home: bool = False,
        **gate: Any,
    ) -> None:
        self.client, self.terms, self.at_home = client, terms, at_home
        self.described: Described = client.describe()
        self.ledger = Ledger(ledger, durable=not at_home)
        self.gate = RateLimiter(replace(pace or Pace(), **({"concurrency": 1} if at_home else {})), **gate)
        self._lock = threading.Lock()
        self._begun = self._same = self._heard = False
        self._enough_drift_checks = terms.drift_checks == 0

    def about(self, images: np.ndarray, *, bucket: Bucket = "training", fit: str | None = None) -> list[Kept]:
        """Answers to images uint8 (N, H, W, C), in order, from the cache or queried now.

        Args:
            images: any number of them; duplicates are queried once.
            bucket: the budget to charge.
            fit: the fit that uses the answers.

        Raises:
            BudgetExceeded: the images do not fit into the remaining budget; nothing is queried.
            TeacherError: the teacher cannot be queried, gave no answer, or has changed.
        """
        claim = self._claim(bucket, fit)
        self._begin()
        keys = keys_of(self.described, images)
        pixels = dict(zip(keys, images, strict=True))
        answers = self.ledger.recall(claim, list(pixels))
        wanted = [key for key in pixels if key not in answers]
        if wanted:
            self._refuse_changed(images.shape[1:])
        said = False
        quick = len(wanted) <= self.described.max_batch
        with tqdm(
            total=len(wanted), desc="querying".ljust(12), unit="image", dynamic_ncols=True, disable=quick or None
        ) as bar:
            while wanted:
                elsewhere: list[bytes] = []
                for known, flying in self._questions(claim, wanted, pixels):
                    answers |= known
                    elsewhere += flying
                    bar.update(len(known))
                    let_go(images)
                if elsewhere:
                    if not said:
                        say = f"another process is querying {len(elsewhere)} of these images: waiting for its answers"
                        tqdm.write(say, file=sys.stderr)
                        said = True
                    self.ledger.recover()
                    self.gate.wait(AGAIN, threading.Event())
                wanted = elsewhere
        return [answers[key] for key in keys]

    def asked(self, fit: str | None = None) -> int:
        """Number of different images that a fit, or the whole run, has used in training."""
        return self.ledger.used(fit or self.terms.run)

    def adopt(self, fit: str, images: int) -> int:
        """Count the images, at least ``images``, that a fit of this or another run used; returns how many.

        Raises:
            BudgetExceeded: they do not fit into the remaining budget.
        """
        self._begin()
        return self.ledger.adopt(self._claim("training", fit), images)

    def spent(self) -> dict[str, Spent]:
        """The accounts of this run, by bucket."""
        self._begin()
        return self.ledger.spent(self.terms.run)

    def _claim(self, bucket: Bucket, fit: str | None = None) -> Claim:
        limit = {"training": self.terms.budget, "evaluation": self.terms.eval_budget, "canary": None}[bucket]
        return Claim(self.terms.run, bucket, self.described, limit, self.terms.total_budget, fit, self.at_home)

    def _begin(self) -> None:
        with self._lock:
            if not self._begun:
                self.ledger.begin(self.terms.run, self.described, anew=self.terms.anew)
                self._begun = True

    def _questions(
        self, claim: Claim, keys: Sequence[bytes], pixels: Mapping[bytes, np.ndarray]
    ) -> Iterator[tuple[dict[bytes, Kept], list[bytes]]]:
        """Query in batches; yields answers, and keys that another process is querying."""
        size, stop = self.described.max_batch, threading.Event()
        parts = [keys[i : i + size] for i in range(0, len(keys), size)]
        if self.gate.pace.concurrency == 1 or len(parts) == 1:
            yield from (self._question(claim, part, pixels, stop) for part in parts)
            return
        if not self._heard:  # a first reply that makes no sense must not cost several
            yield self._question(claim, parts.pop(0), pixels, stop)
        with ThreadPoolExecutor(self.gate.pace.concurrency) as threads:
            waiting: set[Future[Any]] = {threads.submit(self._question, claim, p, pixels, stop) for p in parts}
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                    yield from (future.result() for future in done)
            except BaseException:
                stop.set()  # wait for the queries in flight and store their answers
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _question(
        self, claim: Claim, keys: Sequence[bytes], pixels: Mapping[bytes, np.ndarray], stop: threading.Event
    ) -> tuple[dict[bytes, Kept], list[bytes]]:
        """Query one batch until it is answered; on a rejection, its halves."""
        for tried in count(1):
            self.gate.enter(len(keys), stop)
            reserved = self.ledger.reserve(claim, keys)
            known, elsewhere, mine = reserved.known, reserved.elsewhere, reserved.mine
            if reserved.attempt is None:
                break
            try:
                told = self._attempt(claim, reserved.attempt, np.array([pixels[key] for key in mine]), mine)
            except Unfit:
                for half in (mine[: len(mine) // 2], mine[len(mine) // 2 :]):
                    found, flying = self._question(claim, half, pixels, stop)
                    known, elsewhere = known | found, elsewhere + flying
                break
            except (Busy, Unclear) as error:
                self.gate.refused(error, tried, stop)
            else:
                known = known | dict(zip(mine, told, strict=True))
                self._keep_drift_checks(known, pixels)
                break
        return known, elsewhere

    def _attempt(self, claim: Claim, number: int, images: np.ndarray, keys: Sequence[bytes] = ()) -> list[Kept]:
        """Send one query and book its outcome.

        Raises:
            Busy, Unclear, Unfit: no answer; a single rejected image is stored as failed instead.
            TeacherError: further attempts are useless, or the answers are invalid.
        """
        try:
            told = list(self.client.ask(images))
            wrong = next(filter(None, (malformed(answer, self.described) for answer in told)), None)
            if wrong or len(told) != len(images):
                wrong = wrong or f"{len(told)} answers to {len(images)} images"
                raise TeacherError(f"the teacher {self.described.name} does not answer as it said it would: {wrong}")
        except Unfit as error:
            if len(keys) != 1:
                self.ledger.release(number)
                raise
            failed = Failed(str(error))
            self.ledger.fail(number, keys[0], failed)
            return [failed]
        except Busy:
            self.ledger.release(number)
            raise
        except Closed as error:
            self.ledger.release(number)
            raise TeacherError(f"the teacher {self.described.name} cannot be queried: {error}") from error
        except BaseException:
            (self.ledger.release if claim.certain else self.ledger.doubt)(number)
            raise
        self.ledger.settle(claim, number, dict(zip(keys, told, strict=False)))  # drift checks have no keys
        self.gate.answered()
        self._heard = True
        return list[Kept](told)

    def _keep_drift_checks(self, known: Mapping[bytes, Kept], pixels: Mapping[bytes, np.ndarray]) -> None:
        if not self._enough_drift_checks:
            told = {key: pixels[key] for key, answer in known.items() if not isinstance(answer, Failed | Abstained)}
            self._enough_drift_checks = self.ledger.keep_drift_checks(self.described, told, self.terms.drift_checks)

    def _refuse_changed(self, shape: tuple[int, ...]) -> None:
        """Query the drift checks again, once per process, before anything new is paid for.

        Raises:
            TeacherError: the answers have changed.
        """
        with self._lock:
            if self._same or not self.terms.drift_checks:
                return
            kept = self.ledger.drift_checks(self.described, self.terms.drift_checks)
            kept = [(image, told) for image, told in kept if image.shape == shape]
            if kept:
                now = self._again(np.stack([image for image, _ in kept]))
                self._compare([told for _, told in kept], now)
            self._same = True

    def _again(self, images: np.ndarray) -> list[Kept]:
        claim, told, stop = self._claim("canary"), list[Kept](), threading.Event()
        for start in range(0, len(images), self.described.max_batch):
            part = images[start : start + self.described.max_batch]
            for tried in count(1):
                self.gate.enter(len(part), stop)
                try:
                    told += self._attempt(claim, self.ledger.reserve_again(claim, len(part)), part)
                    break
                except Unfit as error:
                    raise self._changed("it rejects images that it answered before") from error
                except (Busy, Unclear) as error:
                    self.gate.refused(error, tried, stop)
        return told

    def _compare(self, before: Sequence[Kept], now: Sequence[Kept]) -> None:
        pairs = [(a, b) for a, b in zip(before, now, strict=True) if not isinstance(b, Abstained)]
        flipped = len(before) - len(pairs)
        drift = 0.0
        if pairs:
            sides: Any = zip(*pairs, strict=True)
            answers = [usable(side, self.described, smoothing=0.0) for side in sides]
            if self.described.several:
                old, new = (each.sigmoid() for each in answers)
                flipped += int(((old > 0.5) != (new > 0.5)).any(1).sum())
                drift = float((old - new).abs().amax(1).mean())
            else:
                old, new = (each.softmax(1) for each in answers)
                flipped += int((old.argmax(1) != new.argmax(1)).sum())
                drift = float((old - new).abs().sum(1).mean()) / 2
        if flipped or (drift > DRIFT and self.described.access != "label"):
            raise self._changed(f"of {len(before)} images {flipped} changed class, and answers moved by {drift:.3f}")

    def _changed(self, how: str) -> TeacherError:
        return TeacherError(
            f"the teacher {self.described.name}, version {self.described.version}, is not what it was: {how}. Its old "
            "answers and new ones must not be mixed: give the changed teacher another version, whose answers are "
            "paid for anew, or go on with teacher.drift_checks=0"
        )
