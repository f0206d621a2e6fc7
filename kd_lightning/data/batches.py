"""What one training batch holds, by kind of source."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch.

    ``x``: float images (N,C,H,W) in [0,1]; ``y``: int64 labels or float targets; ``t``: the teacher's stored
    answers (N,K), or the latents from which a teacher drew ``x``; ``index``: int64 positions in the set.
    """

    x: Tensor
    y: Tensor | None
    t: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index


class VicinalBatch(NamedTuple):
    """One batch; all labels are places in [0, 1], floats (N,).

    ``x``: float images (N,C,H,W) in [0,1]; ``y``: their labels; ``target``: the wanted labels, near those, possibly a
    little outside [0,1]; ``fake``: labels near ``target`` for images to be made; ``real_weight`` and ``fake_weight``:
    what x and an image of ``fake`` are worth for ``target``; ``goal``: other wanted labels, which no image is near.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    fake: Tensor
    real_weight: Tensor
    fake_weight: Tensor
    goal: Tensor


class CounterfactualBatch(NamedTuple):
    """One batch.

    ``x``: float images (N,C,H,W) in [0,1]; ``y``: their labels, int64 (N,); ``made``: counterfactual images
    (M,C,H,W), of which there may be none; ``causes``: the classes of their shapes, textures and backgrounds, int64
    (M,3).
    """

    x: Tensor
    y: Tensor
    made: Tensor
    causes: Tensor


def rounded(images: Tensor) -> Tensor:
    """Images as a pool will keep them: in [0, 1], in steps of 1/255."""
    return images.float().clamp(0, 1).mul(255).round().div(255)
