"""What a method is handed of a teacher that only answers: something to ask, no module, no parameter, no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from kd_lightning.distributed import collectives
from kd_lightning.errors import BudgetExceeded, TeacherError
from kd_lightning.teachers.access import usable
from kd_lightning.teachers.answer_types import Abstained, Answer, Described
from kd_lightning.teachers.budget.codec import Failed, Kept
from kd_lightning.teachers.budget.tables import Bucket, Spent


class Door(Protocol):
    """What stands between the one who asks and the teacher: :class:`~kd_lightning.teachers.remote.client.Asking`."""

    def about(self, images: np.ndarray, *, bucket: Bucket = "training", fit: str | None = None) -> list[Kept]:
        """Answers to uint8 (N, H, W, C)."""
        ...

    def asked(self, fit: str | None = None) -> int:
        """Different images used so far."""
        ...

    def adopt(self, fit: str, images: int) -> int:
        """Count those of a fit that was made before."""
        ...

    def spent(self) -> dict[str, Spent]:
        """By bucket."""
        ...


@dataclass(frozen=True)
class Answered:
    """What was asked, and what came of it.

    Args:
        positions: int64 (M,) of the images that were answered.
        answers: (M, K), usable as logits.
        abstained: how many the teacher would say nothing of.
        failed: how many it would not take.
        asked: different images that the fit has used so far.
    """

    positions: Tensor
    answers: Tensor
    abstained: int
    failed: int
    asked: int


class QueryTeacher:
    """Asks in 8 bits, on the account of one fit; among ranks the first one asks for all.

    Args:
        door: who asks; only the first rank has one.
        described: what the teacher says of itself.
        smoothing: mass that a bare class spreads evenly over all.
        min_coverage: smallest share of images that a source may be left with because the teacher failed on the rest.
        budget: most images that the run may use, for :meth:`require`; the door keeps to it.
    """

    def __init__(
        self,
        door: Door | None,
        described: Described,
        *,
        smoothing: float = 0.1,
        min_coverage: float = 1.0,
        budget: int | None = None,
    ) -> None:
        self._door, self.described = door, described
        self.smoothing, self.min_coverage, self.budget = smoothing, min_coverage, budget
        self.fit: str | None = None
        self.asked = 0

    @property
    def access(self) -> str:
        """The level of its answers."""
        return self.described.access

    def __call__(self, x: Tensor) -> Tensor:
        """Answer a batch (N, C, H, W) in [0, 1] with (N, K), usable as logits; every rank asks about its own.

        Raises:
            BudgetExceeded: the batch does not fit into what is left; nothing is asked.
            TeacherError: it has no answer to some of them.
        """
        each = collectives.of_each(to_bytes(x))
        told = self._told(np.concatenate(each))
        if told.abstained or told.failed:
            raise TeacherError(
                f"the teacher abstained on {told.abstained} images of a batch and failed on {told.failed}, and a "
                "method that asks in every step cannot leave them out: ask once, with source=queried"
            )
        before = sum(len(images) for images in each[: collectives.rank()])
        return told.answers[before : before + len(x)].to(x.device)

    def about(self, images: Tensor) -> Answered:
        """Answers to uint8 images (N, C, H, W), the same ones on all ranks; equal ones are asked about once.

        Raises:
            BudgetExceeded: they do not all fit into what is left; nothing is asked.
        """
        return self._told(channels_last(images))

    def require(self, images: int) -> None:
        """Refuse at once what will not fit: so many different images in all, before they are made.

        Raises:
            BudgetExceeded: that is more than ``teacher.budget``.
        """
        if self.budget is not None and images > self.budget:
            raise BudgetExceeded(
                f"teacher.budget={self.budget} images: {images} wanted. Raise teacher.budget, or ask about fewer"
            )

    def for_evaluation(self, images: Tensor) -> Answered | None:
        """The same out of a bucket that training does not see; None if it does not hold all: nothing is asked then."""
        return collectives.decided(lambda: self._paid(channels_last(images)))

    def _paid(self, images: np.ndarray) -> Answered | None:
        try:
            return self._ask(images, "evaluation")
        except BudgetExceeded:
            return None

    def adopt(self, images: int) -> None:
        """Count the images of the fit, made now or earlier; it knows of at least so many.

        Raises:
            BudgetExceeded: they do not fit into what is left of the run's budget.
        """
        fit = self.fit or ""
        self.asked = collectives.decided(lambda: cast(Door, self._door).adopt(fit, images))

    def _told(self, images: np.ndarray) -> Answered:
        told = collectives.decided(lambda: self._ask(images, "training"))
        self.asked = told.asked
        return told

    def _ask(self, images: np.ndarray, bucket: Bucket) -> Answered:
        door = cast(Door, self._door)
        kept = door.about(images, bucket=bucket, fit=self.fit if bucket == "training" else None)
        there = [i for i, answer in enumerate(kept) if not isinstance(answer, Abstained | Failed)]
        answers = usable([cast(Answer, kept[i]) for i in there], self.described, smoothing=self.smoothing)
        failed = sum(isinstance(answer, Failed) for answer in kept)
        abstained = len(kept) - len(there) - failed
        return Answered(torch.tensor(there, dtype=torch.int64), answers, abstained, failed, door.asked(self.fit))


def eight_bits(x: Tensor) -> Tensor:
    """Images in [0, 1] as a teacher that only answers is asked about them: rounded to 1/255."""
    return (x.float().clamp(0, 1) * 255).round() / 255


def to_bytes(x: Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] as uint8 (N, H, W, C)."""
    return channels_last((x.detach().float().clamp(0, 1) * 255).round().to(torch.uint8))


def channels_last(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W) as an array (N, H, W, C)."""
    return np.ascontiguousarray(images.cpu().permute(0, 2, 3, 1).numpy())
