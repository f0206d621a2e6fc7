"""The interface to a query-only teacher: 8-bit images in, answers out, numpy only.

No tensor, module or gradient crosses it. A :class:`TeacherClient` makes one attempt per call; counting, budgets,
waiting, retrying and caching are done by :class:`~kd_lightning.teachers.remote.client.LedgerClient`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Told = Literal["logits", "probs", "topk", "label"]


def extremes(counts: Sequence[int]) -> dict[str, Any]:
    """How many images a teacher put in each class, and in the rarest and the commonest, as results hold it."""
    return {"rarest": min(counts), "commonest": max(counts), "each": list(counts)}


@dataclass(frozen=True)
class Probs:
    """One value for each of the K classes: probabilities, or logits where the access level is ``logits``."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class TopK:
    """The largest probabilities and their classes; the other classes were not revealed."""

    classes: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Label:
    """Only the predicted class."""

    label: int


@dataclass(frozen=True)
class Abstained:
    """The teacher declined to answer: a valid answer that counts and costs, but gives no target."""

    reason: str = ""


Answer = Probs | TopK | Label | Abstained


@dataclass(frozen=True)
class Described:
    """A teacher's description of itself.

    Args:
        name: identifies the teacher; answers of different names are never mixed.
        version: identifies its model; answers of different versions are never mixed.
        access: the level of its answers.
        num_classes: K.
        image: (H, W, C) of the images it accepts, None for any.
        max_batch: largest number of images in one query.
        decimals: decimals to which its probabilities are rounded, None for no rounding.
        k: number of classes in a ``topk`` answer.
        price: of one image, in any currency.
        several: whether an image has several labels: probabilities are then of each label by itself.
    """

    name: str
    version: str
    access: Told
    num_classes: int
    image: tuple[int, int, int] | None = None
    max_batch: int = 500
    decimals: int | None = None
    k: int = 5
    price: float = 0.0
    several: bool = False


class TeacherClient(Protocol):
    """Sends queries to one teacher, one attempt per call."""

    def describe(self) -> Described:
        """The teacher's description of itself; costs nothing."""
        ...

    def ask(self, images: np.ndarray) -> Sequence[Answer]:
        """Query the teacher about images uint8 (N, H, W, C), N at most ``max_batch``: one answer per image, in order.

        Raises:
            Busy: refused for now; the images were not counted.
            Unclear: it is unknown whether the images were counted.
            Unfit: the teacher rejects these images; they were not counted.
            Closed: no further attempt can succeed.
        """
        ...


class Unanswered(Exception):
    """An attempt that brought no answers."""


class Busy(Unanswered):
    """Refused for now and not counted: 408, 429, or no connection.

    Args:
        reason: one line.
        retry_after: seconds to wait at least, if the teacher said so.
        limited: it limits its rate (429), which a longer wait mends.
    """

    def __init__(self, reason: str, retry_after: float | None = None, *, limited: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.limited = retry_after, limited


class Unclear(Unanswered):
    """The query was sent but no answer came: a timeout, a broken connection, a 5xx. It counts as spent."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unfit(Unanswered):
    """The teacher rejects the images (400, 413 or 422), perhaps only some of them; not counted."""


class Closed(Unanswered):
    """Further queries are useless: a wrong key, no such model, no credit, or the model has changed."""
