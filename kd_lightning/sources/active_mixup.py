"""Active mixup: query the mixes of a few images on which the student is least certain (Wang et al., CVPR 2020).

*Neural Networks Are More Productive Teachers Than Human Raters: Active Mixup for Data-Efficient Knowledge Distillation
from a Blackbox Model* (BBKD in FS-BBT's tables). A student learns the answers to a few images; of all mixes of two of
them, those on which it is least certain are queried; another student learns all answers so far, and so on. Scoring
needs no query. Each student but the last is a stage.

Deviations (paper / authors' code / here):
    * Candidates: - / all pairs / ``candidates`` random pairs; both take the least certain of eleven weights.
    * Mixes: - / float / 8 bits, as the teacher receives them.
    * Rounds: until the student is good enough / the same / the number of stages, with parts of equal size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.core.inference import predict
from kd_lightning.errors import DataError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.sources.context import Context
from kd_lightning.sources.few_shot_queried import kept_pool, pixels
from kd_lightning.sources.fs_bbt import mixed
from kd_lightning.sources.pool import made_by
from kd_lightning.store.files import file_digest

CHUNK = 2000
"""Number of candidates mixed and scored at a time."""


class ActiveMixup:
    """One part per earlier student: the mixes on which it was least certain.

    Args:
        network: the students' architecture.
        students: their weights, ``stage:NAME/student.safetensors`` of the earlier stages, in order.
        rounds: final number of parts, of equal size.
        candidates: number of pairs scored for each part.
        shares: mixing weights tried for each pair; the least certain one is used.
    """

    version = 1
    needs = frozenset({"task.classification"})

    def __init__(
        self,
        *,
        network: nn.Module,
        students: Sequence[str],
        rounds: int,
        candidates: int = 20000,
        shares: Sequence[float] = (0.30, 0.34, 0.38, 0.42, 0.46, 0.50, 0.54, 0.58, 0.62, 0.66, 0.70),
    ) -> None:
        self.network, self.students = network, tuple(students)
        self.rounds, self.candidates, self.shares = rounds, candidates, tuple(shares)

    def sizes(self, images: int) -> list[int]:
        """Sizes of the parts, one per student so far, of ``images`` in all rounds; the last takes the remainder."""
        each = images // self.rounds
        return [*[each] * (self.rounds - 1), images - each * (self.rounds - 1)][: len(self.students)]

    def __call__(self, context: Context, few: Tensor, images: int, seed: int) -> list[Tensor]:
        """The parts, selected now or read from the store: each uint8 (N, C, H, W).

        Raises:
            DataError: there are too few pairs.
            TeacherError: a file of weights cannot be read, or holds another network.
        """
        parts: list[Tensor] = []
        taken = np.zeros(0, dtype=np.int64)
        for number, size in enumerate(self.sizes(images)):
            so_far = self.students[: number + 1]

            def make(number: int = number, size: int = size, taken: np.ndarray = taken) -> Mapping[str, Tensor]:
                random = np.random.default_rng((seed, number))
                return self.make(context, few, self.students[number], size, taken, random)

            config = {"few": pixels(few), "images": size, "seed": seed, **self.settings(so_far)}
            made = kept_pool(context, config, make)
            parts.append(made["images"])
            taken = np.append(taken, made["pairs"].numpy())
        return parts

    def settings(self, students: Sequence[str]) -> dict[str, Any]:
        """What determines a part, in addition to the few images, the seed and its size."""
        settings = {"candidates": self.candidates, "shares": list(self.shares)}
        settings |= {"kind": "ActiveMixup", "version": self.version, "students": [*map(file_digest, students)]}
        return {"expand": settings | made_by(self, self.network)}

    def make(
        self, context: Context, few: Tensor, student: str, size: int, taken: np.ndarray, random: np.random.Generator
    ) -> dict[str, Tensor]:
        """Select a part: ``images`` uint8 (size, C, H, W) and ``pairs`` (size,), the number of each image's pair."""
        net = context.placed(Normalized(self.network, mean=context.mean, std=context.std))
        load_weights(net, student)
        free = candidates(len(few), self.candidates, taken, random)
        if len(free) < size:
            raise DataError(
                f"active mixup wants {size} further pairs of {len(few)} images, but has {len(free)} to choose from: "
                "raise source.expand.candidates or source.per_class, or lower source.synthetic"
            )
        share, doubt = least_sure(net, few, *both_of(free, len(few)), self.shares, context.device)
        best = np.sort(np.argsort(-doubt, kind="stable")[:size])
        chosen = free[best]
        return {"images": mixed(few, *both_of(chosen, len(few)), share[best]), "pairs": torch.from_numpy(chosen)}


def candidates(few: int, wanted: int, taken: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Numbers (M,) of at most ``wanted`` random different pairs of the few, none of them in ``taken``."""
    pairs = few * (few - 1) // 2
    drawn = random.choice(pairs, min(pairs, wanted + len(taken)), replace=False)
    return np.sort(drawn[~np.isin(drawn, taken)][:wanted])


def both_of(pairs: np.ndarray, few: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the two images of pair number k: k % few, and k // few + 1 further, cyclically."""
    first = pairs % few
    return first, (first + pairs // few + 1) % few


def least_sure(
    net: nn.Module, few: Tensor, first: np.ndarray, second: np.ndarray, shares: Sequence[float], device: str
) -> tuple[np.ndarray, np.ndarray]:
    """For each pair the share with the smallest maximum probability p of the student, (M,), and 1 - p, (M,)."""
    doubts = []
    for begin in range(0, len(first), CHUNK):
        rows = slice(begin, begin + CHUNK)
        sides = first[rows], second[rows]
        mixes = (mixed(few, *sides, np.full(len(sides[0]), share)) for share in shares)
        doubts.append(torch.stack([1 - predict(net, x, device=device).softmax(1).amax(1) for x in mixes]))
    doubt, which = torch.cat(doubts, 1).max(0)
    return np.array(shares)[which.numpy()], doubt.numpy()
