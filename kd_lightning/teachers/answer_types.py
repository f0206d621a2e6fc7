"""What crosses the door of a teacher that only answers: 8-bit images one way, answers the other, numpy alone.

No tensor, module or gradient can pass. Whoever answers is an :class:`Asker`, one attempt a call; counting, paying,
waiting, retrying and remembering are done once for all of them, by those who ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Told = Literal["logits", "probs", "topk", "label"]


@dataclass(frozen=True)
class Probs:
    """A number for each of the K classes: probabilities, or logits where the access is ``logits``."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class TopK:
    """The largest probabilities, and the classes they belong to; what is missing was not told."""

    classes: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Label:
    """A class and nothing else."""

    label: int


@dataclass(frozen=True)
class Abstained:
    """The teacher would not say: valid, paid for, and nothing to train on."""

    reason: str = ""


Answer = Probs | TopK | Label | Abstained


@dataclass(frozen=True)
class Described:
    """What a teacher says of itself before it is asked anything.

    Args:
        name: who it is; answers of two names are never mixed.
        version: of its model; nor those of two versions.
        access: what its answers are.
        num_classes: K.
        image: (H, W, C) of the images it takes, None for any.
        max_batch: most images of one question.
        decimals: to which its probabilities are rounded, None for not at all.
        k: classes that ``topk`` tells.
        price: of one image, in whatever currency.
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


class Asker(Protocol):
    """Asks one teacher, once."""

    def describe(self) -> Described:
        """What the teacher says of itself; free."""
        ...

    def ask(self, images: np.ndarray) -> Sequence[Answer]:
        """One attempt at images uint8 (N, H, W, C), N at most ``max_batch``: an answer for each, in their order.

        Raises:
            Busy: not now; nothing was counted.
            Unclear: nobody knows whether it was counted.
            Unfit: something about the images is wrong; nothing was counted.
            Closed: no further attempt can succeed.
        """
        ...


class Unanswered(Exception):
    """An attempt without answers."""


class Busy(Unanswered):
    """Refused for now and not counted: 408, 429, a connection that never came about.

    Args:
        reason: in words.
        retry_after: seconds to wait at least, where the teacher said so.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unclear(Unanswered):
    """The question left and no answer came: a timeout, a broken connection, a 5xx. It counts as spent."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unfit(Unanswered):
    """The teacher will not take these images, 400, 413 or 422: some of them may be at fault, and it is not counted."""


class Closed(Unanswered):
    """Asking on is of no use: a wrong key, no such model, no credit, another version than before."""
