"""Losses on vectors of features, such as the pooled ones before the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.losses.features import Features, check_equal, full_precision, vectors


def standardised_power(student: Features, teacher: Features, *, exponent: float = 4.0, eps: float = 1e-12) -> Tensor:
    """The logarithm of sum |s - t|^exponent of features standardised over the batch: SRD (Miles et al., AAAI 2024).

    The logarithm makes the gradient independent of the scale. Both are standardised by the statistics of this batch, as
    in the authors' code, the frozen teacher's too.

    Args:
        student: features (N, D), after a linear layer to the teacher's width.
        teacher: features (N, D).
        exponent: the authors' 4.
        eps: added to the sum, so that equal features give log(eps) and not minus infinity.
    """
    s, t = vectors(student), vectors(teacher)
    check_equal(s, t)
    s, t = (F.batch_norm(rows, None, None, training=True, eps=1e-4) for rows in (s, t))
    return ((s - t).abs().pow(exponent).sum() + eps).log()


class PredictedVariance(nn.Module):
    """Squared differences, each divided by a variance that a linear layer predicts from the student's features:
    PAD (Zhang et al., ECCV 2020).

    Mean over values of (s - t)^2 / (eps + e^v) + v, v = BatchNorm(Linear(s)), as in the authors' code without 1/2.

    Args:
        student_shapes: shapes of the student's features without the batch, one layer.
        eps: least variance.
    """

    def __init__(self, *, student_shapes: Sequence[Sequence[int]], eps: float = 1e-6) -> None:
        super().__init__()
        width = prod(student_shapes[0])
        self.log_variance = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
        self.eps = eps

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """The loss of features (N, D) of both."""
        return self._loss(vectors(student), vectors(teacher))

    @full_precision
    def _loss(self, s: Tensor, t: Tensor) -> Tensor:
        check_equal(s, t)
        v = self.log_variance(s)
        return ((s - t).square() / (self.eps + v.exp()) + v).mean()
