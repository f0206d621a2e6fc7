"""The query-only teacher that methods receive: it answers images and exposes no module, parameter or gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from kd_lightning.distributed import collectives, decisions
from kd_lightning.errors import BudgetExceeded, TeacherError
from kd_lightning.teachers.access import usable
from kd_lightning.teachers.answer_types import Abstained, Answer, Described
from kd_lightning.teachers.budget.codec import Failed, Kept
from kd_lightning.teachers.budget.tables import Bucket, Spent


class QueryClient(Protocol):
    """The client that queries the teacher: :class:`~kd_lightning.teachers.remote.client.LedgerClient`, or a dry run."""

    def about(self, images: np.ndarray, *, bucket: Bucket = "training", fit: str | None = None) -> list[Kept]:
        """Answers to images uint8 (N, H, W, C), in order."""
        ...

    def asked(self, fit: str | None = None) -> int:
        """Number of different images used so far."""
        ...

    def adopt(self, fit: str, images: int) -> int:
        """Count the images that an earlier fit used; returns how many."""
        ...

    def spent(self) -> dict[str, Spent]:
        """Images used, paid for and in doubt, and their cost, by bucket."""
        ...


@dataclass(frozen=True)
class Answered:
    """The answers to one set of images.

    Args:
        positions: int64 (M,), positions of the images that were answered.
        answers: (M, K), usable as logits.
        abstained: number of images on which the teacher abstained.
        failed: number of images that it rejected.
        asked: number of different images that the fit has used so far.
    """

    positions: Tensor
    answers: Tensor
    abstained: int
    failed: int
    asked: int


class QueryTeacher:
    """Queries a teacher with 8-bit images on behalf of one fit; in a distributed run only rank 0 sends queries.

    Args:
        door: the client that queries the teacher; None on all ranks but the first.
        described: the teacher's description of itself.
        smoothing: label smoothing of answers that are only a class.
        min_coverage: smallest fraction of a source's images that must remain where the teacher failed on others.
        budget: most images that the run may use, checked by :meth:`require`; the client enforces it on every query.
    """

    def __init__(
        self,
        door: QueryClient | None,
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
        """The access level of its answers."""
        return self.described.access

    def __call__(self, x: Tensor) -> Tensor:
        """Answer this rank's batch (N, C, H, W) in [0, 1] with (N, K), usable as logits. A collective call.

        Raises:
            BudgetExceeded: the batch does not fit into the remaining budget; nothing is queried.
            TeacherError: the teacher abstained or failed on some of the images.
        """
        told, _, answers = self._of_ranks(x)
        if told.abstained or told.failed:
            raise TeacherError(
                f"the teacher abstained on {told.abstained} images of a batch and failed on {told.failed}, and a "
                "method that queries in every step cannot leave them out: query once, with source=queried"
            )
        return answers

    def answered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ask about this rank's batch (N, C, H, W) in [0, 1], and leave out what got no answer. A collective call.

        Returns:
            Positions (M,) in the batch, and the answers (M, K), usable as logits.

        Raises:
            BudgetExceeded: the batch does not fit into the remaining budget; nothing is queried.
        """
        _, positions, answers = self._of_ranks(x)
        return positions, answers

    def _of_ranks(self, x: Tensor) -> tuple[Answered, Tensor, Tensor]:
        """What all ranks were told; and positions and answers of this rank's batch."""
        each = collectives.of_each(to_bytes(x))
        told = self._told(np.concatenate(each))
        before = sum(len(images) for images in each[: collectives.rank()])
        mine = (told.positions >= before) & (told.positions < before + len(x))
        return told, (told.positions[mine] - before).to(x.device), told.answers[mine].to(x.device)

    def about(self, images: Tensor) -> Answered:
        """Answers to uint8 images (N, C, H, W), the same on all ranks; duplicates are queried once. A collective call.

        Raises:
            BudgetExceeded: the images do not fit into the remaining budget; nothing is queried.
        """
        return self._told(channels_last(images))

    def require(self, images: int) -> None:
        """Check that this many different images in all fit into the budget, before they are generated.

        Raises:
            BudgetExceeded: they exceed ``teacher.budget``.
        """
        if self.budget is not None and images > self.budget:
            raise BudgetExceeded(
                f"teacher.budget={self.budget} images: {images} wanted. Raise teacher.budget, or ask about fewer"
            )

    def for_evaluation(self, images: Tensor) -> Answered | None:
        """As :meth:`about`, charged to the evaluation budget; None, without a query, if that is too small for all."""
        return decisions.decided(lambda: self._paid(channels_last(images)))

    def _paid(self, images: np.ndarray) -> Answered | None:
        try:
            return self._ask(images, "evaluation")
        except BudgetExceeded:
            return None

    def adopt(self, images: int) -> None:
        """Count the images that the fit has used, at least ``images``, whether it was trained now or earlier.

        Raises:
            BudgetExceeded: they do not fit into the remaining budget of the run.
        """
        fit = self.fit or ""
        self.asked = decisions.decided(lambda: cast(QueryClient, self._door).adopt(fit, images))

    def _told(self, images: np.ndarray) -> Answered:
        told = decisions.decided(lambda: self._ask(images, "training"))
        self.asked = told.asked
        return told

    def _ask(self, images: np.ndarray, bucket: Bucket) -> Answered:
        door = cast(QueryClient, self._door)
        kept = door.about(images, bucket=bucket, fit=self.fit if bucket == "training" else None)
        there = [i for i, answer in enumerate(kept) if not isinstance(answer, Abstained | Failed)]
        answers = usable([cast(Answer, kept[i]) for i in there], self.described, smoothing=self.smoothing)
        failed = sum(isinstance(answer, Failed) for answer in kept)
        abstained = len(kept) - len(there) - failed
        return Answered(torch.tensor(there, dtype=torch.int64), answers, abstained, failed, door.asked(self.fit))


def eight_bits(x: Tensor) -> Tensor:
    """Images in [0, 1] as a query-only teacher receives them: rounded to multiples of 1/255."""
    return (x.float().clamp(0, 1) * 255).round() / 255


def to_bytes(x: Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] as uint8 (N, H, W, C)."""
    return channels_last((x.detach().float().clamp(0, 1) * 255).round().to(torch.uint8))


def channels_last(images: Tensor) -> np.ndarray:
    """A view of images (N, C, H, W) as an array (N, H, W, C): those of a file stay in it until they are asked about."""
    return images.cpu().permute(0, 2, 3, 1).numpy()
