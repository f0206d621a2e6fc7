"""Mean and variance of every channel, with gradients, for losses on batch-norm statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MeanVar = tuple[Tensor, Tensor]


def mean_var(x: Tensor) -> MeanVar:
    """Mean and biased variance (C,) of x (N,C,...), in its dtype.

    The same as ``torch.var_mean(x, dims, correction=0)`` up to rounding. On the CPU that function is not
    vectorised; the sums of batch norm, used here, are.
    """
    return _MeanVar.apply(x)


def pooled(means: Tensor, variances: Tensor) -> MeanVar:
    """Mean and biased variance (C,) over several batches of equal size, from those of each batch, (batches, C)."""
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


class _MeanVar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.device.type == "cpu":
            mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        else:
            var, mean = torch.var_mean(x, dim=[d for d in range(x.ndim) if d != 1], correction=0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        # d mean / dx = 1/n, d var / dx = 2 (x - mean) / n
        x, mean = ctx.saved_tensors
        n, per_channel = x.numel() // x.shape[1], (-1, *[1] * (x.ndim - 2))
        slope = (2 / n * grad_var).view(per_channel)
        return torch.addcmul((grad_mean / n).view(per_channel), x - mean.view(per_channel), slope)
