"""Paired difference of two rows over their common seeds, with a Student-t interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from kd_lightning.errors import UserError
from kd_lightning.results.run_index import Group, seeds_of

LEVEL = 0.95

Seed = TypeVar("Seed", bound=Hashable)


class Difference(NamedTuple):
    """Mean of ours - theirs over ``n`` seeds, and the ends of its interval, None for one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def verdict(self, *, less_is_better: bool = False) -> str:
        """``better`` or ``worse`` where the interval excludes 0, else ``not shown``; empty for one seed."""
        if self.low is None or self.high is None:
            return ""
        if self.low <= 0 <= self.high:
            return "not shown"
        return "better" if (self.mean < 0) == less_is_better else "worse"

    def in_words(self, digits: int = 4) -> str:
        """The difference and its interval: ``+0.0101 (+0.0012 to +0.0190)``."""
        ends = (self.mean, self.low, self.high)
        mean, *interval = [f"{round(end, digits) + 0.0:+.{digits}f}" for end in ends if end is not None]  # no -0.0
        return f"{mean} ({' to '.join(interval)})" if interval else mean


def paired_difference(ours: Mapping[Seed, float], theirs: Mapping[Seed, float], level: float = LEVEL) -> Difference:
    """Mean difference over the common seeds, and its two-sided Student-t interval with n - 1 degrees of freedom.

    Args:
        ours: value by seed.
        theirs: value by seed; seeds that only one side has do not count.
        level: probability that the interval covers the true mean, where differences are normal.

    Raises:
        ValueError: no seed in common, or ``level`` not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    differences = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if not differences:
        raise ValueError(f"no seed in common: {sorted(map(str, ours))} and {sorted(map(str, theirs))}")
    n, mean = len(differences), statistics.fmean(differences)
    if n == 1:
        return Difference(mean, None, None, 1)
    from scipy.special import stdtrit  # slow to import, and few tables need it

    half = float(stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def differences(groups: Sequence[Group], key: str, against: str) -> list[Difference | None]:
    """The paired difference of each group to the group of method ``against`` with the same other settings.

    Raises:
        UserError: no group is of that method.
    """
    methods = list(dict.fromkeys(run.setting("method") for at in groups for run in at.runs))
    if against not in methods:
        raise UserError(f"--against {against}: no finished run has this method; these have: {', '.join(methods)}")

    def others(at: Group) -> dict[str, str]:
        return {name: value for name, value in at.settings.items() if name != "method"}

    def values(at: Group) -> dict[tuple[str, ...], float]:
        return {seeds_of(run): value for run in at.runs if (value := run.metric(key)) is not None}

    theirs = [at for at in groups if at.runs and at.runs[0].setting("method") == against]
    found: list[Difference | None] = []
    for at in groups:
        other = next((one for one in theirs if one is not at and others(one) == others(at)), None)
        common = other is not None and set(values(at)) & set(values(other))
        found.append(paired_difference(values(at), values(other)) if other and common else None)
    return found
