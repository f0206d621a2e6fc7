"""Similarity of two networks' decision boundaries, by walks to both (``metrics=boundary``, ``kd-boundary``).

Heo et al., *Knowledge Distillation with Adversarial Samples Supporting Decision Boundary* (AAAI 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd_lightning.core.inference import predict
from kd_lightning.core.notices import notice
from kd_lightning.data.dataset import Split
from kd_lightning.losses.boundary_walk import boundary_walk
from kd_lightning.networks.normalized import Normalized


class Similarity(NamedTuple):
    """MagSim in (0, 1] and AngSim in [-1, 1], averaged over the valid pairs; NaN where no pair is valid."""

    magsim: float
    angsim: float
    valid_fraction: float


class Pairs(NamedTuple):
    """Comparison of two networks' walks from the same image to the same class, for every image and class.

    ``magnitude``: ratio of the shorter displacement to the longer (P,); ``cosine`` of the angle between them (P,);
    ``valid``: whether both walks crossed (P,); ``steps``: of the longer walk (P,); ``images``: number of images.
    """

    magnitude: Tensor
    cosine: Tensor
    valid: Tensor
    steps: Tensor
    images: int

    def within(self, max_steps: int) -> Similarity:
        """The similarity with walks limited to ``max_steps``."""
        valid = self.valid & (self.steps <= max_steps)
        if not valid.any():
            return Similarity(math.nan, math.nan, 0.0)
        means = (self.magnitude[valid].mean(), self.cosine[valid].mean(), valid.double().mean())
        return Similarity(*(float(mean) for mean in means))


def compare(
    one: nn.Module,
    other: nn.Module,
    split: Split,
    *,
    std: Tensor | float = 1.0,
    eta: float = 0.3,
    eps: float = 1e-4,
    max_steps: int = 10,
    images: int | None = 500,
    box: tuple[Tensor | float, Tensor | float] | None = (0.0, 1.0),
    device: str = "cpu",
    chunk: int = 1024,
) -> Pairs:
    """Walk on both networks from the images that both classify correctly to every other class.

    Args:
        one: images (N, C, H, W) in [0, 1] to logits (N, K).
        other: the other network; the order of the two does not matter.
        split: labelled images.
        std: per channel (C, 1, 1); displacements are compared in units of x / std.
        eta: see :func:`boundary_walk`.
        eps: see :func:`boundary_walk`.
        max_steps: see :func:`boundary_walk`.
        images: most images, spread evenly over those that both classify correctly; None for all.
        box: see :func:`boundary_walk`.
        device: where to walk.
        chunk: walks at a time.
    """
    nets = (one, other)
    answers = [predict(net, split.images, device=device) for net in nets]
    classes = answers[0].shape[1]
    right = torch.stack([answer.argmax(1) == split.labels for answer in answers]).all(0).nonzero().view(-1)
    if images is not None and len(right) > images:
        right = right[torch.linspace(0, len(right) - 1, images).long()]
    others = torch.arange(1, classes)
    base = split.labels[right].repeat_interleave(classes - 1)
    target = (base + others.repeat(len(right))) % classes
    start = right.repeat_interleave(classes - 1)

    kept: list[list[Tensor]] = [[], [], [], []]
    with _as_they_answer(*nets):
        for part in torch.arange(len(start)).split(chunk) if len(start) else ():
            x = split.images[start[part]].to(device).float() / 255
            b, k = base[part].to(device), target[part].to(device)
            walks = [
                boundary_walk(net, x, b, k, std=std, eta=eta, eps=eps, max_steps=max_steps, box=box) for net in nets
            ]
            moved = [((walk.x - x) / std).flatten(1).double() for walk in walks]
            lengths = [d.norm(dim=1).clamp_min(1e-30) for d in moved]
            found = (
                torch.minimum(*lengths) / torch.maximum(*lengths),
                (moved[0] * moved[1]).sum(1) / (lengths[0] * lengths[1]),
                walks[0].ok & walks[1].ok,
                torch.maximum(walks[0].steps, walks[1].steps),
            )
            for values, more in zip(kept, found, strict=True):
                values.append(more.cpu())
    empty = (torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.long))
    magnitude, cosine, ok, steps = (torch.cat(v) if v else none for v, none in zip(kept, empty, strict=True))
    return Pairs(magnitude, cosine, ok, steps, len(right))


@contextmanager
def _as_they_answer(*nets: nn.Module) -> Iterator[None]:
    """Put the networks into eval mode inside the block."""
    modes = [net.training for net in nets]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for net, mode in zip(nets, modes, strict=True):
            net.train(mode)


class Boundary:
    """Similarity of the student's boundary to the teacher's: MagSim, AngSim and the fraction of valid pairs.

    A pair is a test image that both classify correctly and one of the other classes. It is valid if the walks on both
    networks cross into that class within ``max_steps``; other walks end in a third class or out of steps. Values at
    different valid fractions are hard to compare, so read the three together.

    Args:
        images: most test images, spread evenly; None for all.
        eta: length of a step for a margin of 1, in normalised units.
        eps: added to the margin.
        max_steps: I_max.
    """

    needs = frozenset({"teacher.gradients", "task.classification"})

    def __init__(self, *, images: int | None = 500, eta: float = 0.3, eps: float = 1e-4, max_steps: int = 10) -> None:
        self.images, self.eta, self.eps, self.max_steps = images, eta, eps, max_steps

    def pairs(self, student: nn.Module, teacher: Normalized, split: Split, *, device: str = "cpu") -> Pairs:
        """The walks, in units of the teacher's normalisation."""
        settings = {"eta": self.eta, "eps": self.eps, "max_steps": self.max_steps, "images": self.images}
        std = teacher.std.to(device)
        return compare(student, teacher, split, std=std, device=device, **settings)  # type: ignore[arg-type]

    def __call__(
        self, student: nn.Module, teacher: Normalized, split: Split, *, device: str = "cpu", samples: Path | None = None
    ) -> dict[str, float | None]:
        """``magsim``, ``angsim`` (None where no pair is valid, with a warning) and ``valid_fraction``."""
        found = self.pairs(student, teacher, split, device=device).within(self.max_steps)
        if not found.valid_fraction:
            notice(
                f"no pair of walks reached the boundary on both networks within {self.max_steps} steps, so there is no "
                "MagSim and no AngSim: raise metrics.boundary.max_steps",
                stacklevel=2,
            )
        return {k: None if math.isnan(v) else v for k, v in found._asdict().items()}
