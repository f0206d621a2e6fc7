"""Digits to make other sets of: scikit-learn's or MNIST's, and which of them go into which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.data.dataset import Split
from kd_lightning.data.datasets import digits, files
from kd_lightning.errors import DataError


def pools(base: str, root: str | Path, download: bool, *, instead: str) -> tuple[list[Split], str]:
    """Digits uint8 (N,1,H,W) for training and, where they are others, for the test; and their layout.

    Args:
        base: ``digits``, scikit-learn's 1,797 of 8x8, or ``mnist``.
        root: of MNIST's files.
        download: let torchvision fetch MNIST.
        instead: what to type to do without MNIST.

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
        raise DataError(f"{error}; or take those of scikit-learn with {instead}") from error
    return [split for split in (loaded.train, loaded.test) if split is not None], loaded.layout


def shares(
    name: str,
    base: str,
    pools: Sequence[Split],
    wanted: Mapping[str, int],
    test: int | None,
    generators: Sequence[torch.Generator],
) -> dict[str, tuple[int, Tensor]]:
    """The pool of each part and the places of its digits there, in a random order; no digit is in two parts.

    More of the last of ``wanted`` are a superset of fewer, and leave the others as they are.

    Args:
        name: of the set that is made, for the message.
        base: as in :func:`pools`, for the message.
        pools: for training and, where they are others, for the test.
        wanted: digits of each part but the test.
        test: digits of the test; None for all there are.
        generators: of the order, one of each pool.

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
