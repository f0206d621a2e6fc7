"""Pairs of features of student and teacher: one tensor each, or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
Features: TypeAlias = Tensor | Sequence[Tensor]
"""Features of one layer, or of several: maps (N, C, H, W) or vectors (N, D)."""


def listed(taps: Features) -> list[Tensor]:
    """The features of each layer in fp32."""
    return [tap.float() for tap in ([taps] if isinstance(taps, Tensor) else taps)]


def pairs(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """Features of student and teacher, layer by layer in fp32; of two maps, the larger is averaged down.

    Raises:
        ValueError: different numbers of layers, images or dimensions.
    """
    students, teachers = listed(student), listed(teacher)
    if len(students) != len(teachers):
        raise ValueError(f"each layer of the student needs one of the teacher, got {len(students)} and {len(teachers)}")
    return [one_size(s, t) for s, t in zip(students, teachers, strict=True)]


def one_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two features of the same images; maps get the smaller height and width of both, by average pooling."""
    if len(a) != len(b) or a.ndim != b.ndim:
        raise ValueError(f"expected features of the same images, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.ndim < 4 or a.shape[2:] == b.shape[2:]:
        return a, b
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


def vectors(taps: Features) -> Tensor:
    """Features (N, D) of one layer in fp32; a map's values in a row.

    Raises:
        ValueError: features of several layers.
    """
    layers = listed(taps)
    if len(layers) != 1:
        raise ValueError(f"this loss compares one layer, got {len(layers)}")
    return layers[0].flatten(1)


def check_equal(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError for features of different shapes, which need an adapter."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's features {tuple(student.shape)} do not fit the teacher's {tuple(teacher.shape)}: "
            "an adapter has to bring them to one shape"
        )


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A loss whose matrix products stay in fp32 under autocast, which would take them in half precision."""

    @wraps(loss)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = (arg[0] if isinstance(arg, (list, tuple)) else arg for arg in args)
        device = next(tensor.device for tensor in tensors if isinstance(tensor, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*args, **kwargs)

    return exact
