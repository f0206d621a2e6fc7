"""Training batches, one type for each kind of source."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch of images, labels and answers.

    ``x``: float images (N,C,H,W) in [0,1]; ``y``: int64 labels or float targets; ``t``: the teacher's stored
    answers (N,K), or the latents from which a teacher drew ``x``; ``index``: int64 positions in the set.
    """

    x: Tensor
    y: Tensor | None
    t: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index


class VicinalBatch(NamedTuple):
    """One batch of CcGAN's vicinal training; all labels are places in the range, floats (N,).

    ``x``: float images (N,C,H,W) in [0,1]; ``y``: their labels; ``target``: the wanted labels, near ``y``, possibly
    slightly outside [0,1]; ``fake``: labels near ``target`` for images to generate; ``real_weight`` and
    ``fake_weight``: weights of ``x`` and of images of ``fake`` for ``target``; ``goal``: further wanted labels, drawn
    independently of ``x``.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    fake: Tensor
    real_weight: Tensor
    fake_weight: Tensor
    goal: Tensor


class CounterfactualBatch(NamedTuple):
    """One batch of real and counterfactual images.

    ``x``: float images (N,C,H,W) in [0,1]; ``y``: their labels, int64 (N,); ``made``: counterfactual images
    (M,C,H,W), M may be 0; ``causes``: the classes of their shapes, textures and backgrounds, int64 (M,3).
    """

    x: Tensor
    y: Tensor
    made: Tensor
    causes: Tensor


class StreamsBatch(NamedTuple):
    """A batch of labelled images and one of images without labels, whose ``y`` is None; their sizes may differ."""

    labelled: Batch
    unlabelled: Batch


def rounded(images: Tensor) -> Tensor:
    """Images clamped to [0, 1] and rounded to steps of 1/255, as a pool stores them."""
    return images.float().clamp(0, 1).mul(255).round().div(255)
