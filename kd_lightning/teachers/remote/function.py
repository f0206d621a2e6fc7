"""Any Python function from images to answers as a teacher, for foreign APIs."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kd_lightning.errors import TeacherError
from kd_lightning.teachers.answer_types import (
    Abstained,
    Answer,
    Busy,
    Closed,
    Described,
    Label,
    Probs,
    Told,
    TopK,
    Unanswered,
    Unclear,
    Unfit,
)


class Function:
    """Queries a function, from several threads at a time, as ``teacher.pace.concurrency`` says.

    Args:
        function: images uint8 (N, H, W, C) to a list with, for each image, K probabilities, ``{class: probability}``,
            a class, or None for an abstention; classes by number or by name. It may raise ``Unanswered`` or the
            exceptions of an HTTP library, which are translated by their status code; a broken connection counts as
            spent.
        name: identifies the teacher; answers are cached under it.
        version: of the teacher behind the function; the answers of another version are paid for anew.
        num_classes: K.
        access: what the function returns: ``probs``, ``topk`` for mappings, ``label``, or ``logits``.
        decimals: decimals to which its probabilities are rounded, None for no rounding.
        k: most classes in a mapping.
        max_batch: most images of one call.
        price: of one image.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Sequence[Any]],
        *,
        name: str,
        num_classes: int,
        access: Told,
        version: str = "1",
        decimals: int | None = None,
        k: int = 5,
        max_batch: int = 16,
        price: float = 0.0,
    ) -> None:
        self.function = function
        self.described = Described(
            name=name,
            version=version,
            access=access,
            num_classes=num_classes,
            max_batch=max_batch,
            decimals=decimals,
            k=k,
            price=price,
        )
        self.numbers: dict[str, int] = {}

    def name_classes(self, names: Sequence[str]) -> None:
        """From now on understand these names of the classes 0 to K - 1, in upper or lower case, too."""
        self.numbers = {_plain(name): i for i, name in enumerate(names)}

    def expect_several(self) -> None:
        """From now on its probabilities are of each label by itself, for an image has several."""
        self.described = replace(self.described, several=True)

    def describe(self) -> Described:
        """The description given by the arguments."""
        return self.described

    def ask(self, images: np.ndarray) -> list[Answer]:
        """Call the function once."""
        try:
            told = self.function(images)
        except Unanswered:
            raise
        except Exception as error:
            if (unanswered := _unanswered(error)) is None:
                raise
            getattr(error, "close", lambda: None)()  # urllib's exceptions hold their connection
            raise unanswered from error
        return [self._answer(one) for one in told]

    def _answer(self, told: Any) -> Answer:
        match told:
            case None:
                return Abstained()
            case Probs() | TopK() | Label() | Abstained():
                return told
            case numbers.Integral():
                return Label(int(told))
            case str():
                return Label(self._number(told))
            case Mapping():
                best = sorted(((self._number(c), float(p)) for c, p in told.items()), key=lambda item: -item[1])
                if self.described.access in ("probs", "logits") and len(dict(best)) == self.described.num_classes:
                    return Probs(tuple(p for _, p in sorted(best)))
                return TopK(tuple(c for c, _ in best), tuple(p for _, p in best))
        try:
            return Probs(tuple(float(value) for value in told))
        except (TypeError, ValueError):
            raise TeacherError(
                f"{self.described.name}: an answer is {told!r:.80}, expected K probabilities, {{class: probability}}, "
                "a class, or None"
            ) from None

    def _number(self, told: Any) -> int:
        """The number of a class that the function tells by number or by name."""
        if isinstance(told, str) and (known := self.numbers.get(_plain(told))) is not None:
            return known
        try:
            return int(told)
        except (TypeError, ValueError):
            few = ", ".join(list(self.numbers)[:10]) + (", ..." if len(self.numbers) > 10 else "")
            raise TeacherError(
                f"{self.described.name}: an answer is {told!r:.80}, which is no class of the data: {few or 'a number'}"
            ) from None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _unanswered(error: Exception) -> Unanswered | None:
    """What the exception of an HTTP library means; None for any other exception."""
    response = getattr(error, "response", None)
    code = getattr(error, "code", None) or getattr(response, "status_code", None)
    said = f"{type(error).__name__}: {error}"
    if isinstance(code, int) and 400 <= code < 600:
        headers = getattr(error, "headers", None) or getattr(response, "headers", None) or {}
        after = str(headers.get("Retry-After") or "")
        seconds = float(after) if after.replace(".", "", 1).isdigit() else None
        if code in (408, 429):
            return Busy(said, seconds, limited=code == 429)
        if code in (400, 413, 422):
            return Unfit(said)
        return Unclear(said, seconds) if code >= 500 else Closed(said)
    lost = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "requests")
    return Unclear(said) if lost else None
