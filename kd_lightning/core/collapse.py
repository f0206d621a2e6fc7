"""How the collapse of a generator is reported."""

from __future__ import annotations


class Collapsed(Exception):
    """Training was ended because the generator makes nothing that a student could learn from.

    Args:
        round_: after which it was noticed.
        words: what its images are like.
        remedy: what to try.
    """

    def __init__(self, round_: int, words: str, remedy: str) -> None:
        super().__init__(round_, words, remedy)  # so that it pickles: all ranks are told
        self.round, self.words, self.remedy = round_, words, remedy

    def __str__(self) -> str:
        return f"the generator has collapsed (round {self.round}): {self.words}"
