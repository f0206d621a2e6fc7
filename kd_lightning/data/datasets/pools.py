"""Digits from which other sets are made: scikit-learn's or MNIST's, and their split into parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.data.dataset import Split
from kd_lightning.data.datasets import digits, files
from kd_lightning.errors import DataError


def pools(base: str, root: str | Path, download: bool, *, instead: str) -> tuple[list[Split], str]:
    """Digits uint8 (N,1,H,W) for training and, where a base has a separate test set, for the test; and their layout.

    Args:
        base: ``digits``, scikit-learn's 1,797 of 8x8, or ``mnist``.
        root: of MNIST's files.
        download: let torchvision fetch MNIST.
        instead: settings that avoid MNIST, for the message.

    Raises:
        DataError: an unknown base, or MNIST cannot be read.
    """
    if base == "digits":
        loaded = digits.load(val=0)
        assert loaded.train is not None
        assert loaded.test is not None
        both = (loaded.train, loaded.test)
        return [Split(torch.cat([s.images for s in both]), torch.cat([s.labels for s in both]))], loaded.layout
    if base != "mnist":
        raise DataError(f"data.base={base}: expected digits or mnist")
    try:
        loaded = files.load(name="mnist", root=root, size=28, channels=1, val=0, download=download)
    except DataError as error:
        raise DataError(f"{error}; or use the digits of scikit-learn with {instead}") from error
    return [split for split in (loaded.train, loaded.test) if split is not None], loaded.layout


def shares(
    name: str,
    base: str,
    pools: Sequence[Split],
    wanted: Mapping[str, int],
    test: int | None,
    generators: Sequence[torch.Generator],
) -> dict[str, tuple[int, Tensor]]:
    """For each part, the index of its pool and the indices of its digits there, shuffled; no digit is in two parts.

    A larger number for the last part of ``wanted`` gives a superset and does not change the other parts.

    Args:
        name: of the set to make, for the message.
        base: as in :func:`pools`, for the message.
        pools: as returned by :func:`pools`.
        wanted: number of digits of each part except the test.
        test: number of digits of the test; None for all that are left.
        generators: shuffle the pools, one for each.

    Raises:
        DataError: fewer digits than wanted.
    """
    found: dict[str, tuple[int, Tensor]] = {}
    counts = dict(wanted)
    for number, (pool, generator) in enumerate(zip(pools, generators, strict=True)):
        order = torch.randperm(len(pool), generator=generator)
        used = sum(counts.values())
        if number == len(pools) - 1:
            counts["test"] = max(len(pool) - used, 0) if test is None else test
        if sum(counts.values()) > len(pool):
            asked = " and ".join(f"data.{part}={count}" for part, count in counts.items())
            raise DataError(f"{name}: {asked}, but {base} has {len(pool)} digits for them: choose fewer")
        start = 0
        for part, count in counts.items():
            found[part] = number, order[len(pool) - count :] if part == "test" else order[start : start + count]
            start += count
        counts = {}
    return found
