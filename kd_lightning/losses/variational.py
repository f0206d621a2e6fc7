"""Variational information distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.losses.features import Features, check_equal, pairs


class VariationalInformation(nn.Module):
    """Negative log-likelihood of the teacher's features: VID (Ahn et al., CVPR 2019).

    1/2 mean[(s - t)^2 / v + log v] of normal distributions, whose means s an adapter predicts from the student; the
    variance v = softplus(rho) + eps of each channel is a parameter. Of several layers the losses are added.

    Args:
        teacher_shapes: shapes of the teacher's features without the batch, of each layer.
        variance: v at the start.
        eps: least variance.
    """

    def __init__(self, *, teacher_shapes: Sequence[Sequence[int]], variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        start = math.log(math.expm1(variance - eps))
        self.rho = nn.ParameterList([torch.full((shape[0],), start) for shape in teacher_shapes])
        self.eps = eps

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """The loss of features (N, C) or (N, C, H, W) of both."""
        losses = []
        for (s, t), rho in zip(pairs(student, teacher), self.rho, strict=True):
            check_equal(s, t)
            variance = (F.softplus(rho.float()) + self.eps).view(-1, *(1,) * (t.ndim - 2))
            losses.append(((s - t).square() / variance + variance.log()).mean() / 2)
        return torch.stack(losses).sum()
