"""Collectives: decisions of rank 0 for all, means, maxima and gathered rows.

In a single process they involve no communication.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

T = TypeVar("T")

deciding = False
"""Whether the first rank does something while the others wait."""


def rank() -> int:
    """The rank of this process; 0 if it is the only one."""
    return dist.get_rank() if together() else 0


def world() -> int:
    """The number of ranks; 1 inside :func:`decided`."""
    return dist.get_world_size() if together() and not deciding else 1


def together() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def gathered(own: Tensor) -> Tensor:
    """The rows (N, ...) of every rank, in rank order and in fp32; gradients reach this rank's rows.

    A loss on the result, computed on every rank, has after DDP's averaging the gradient of a single process.
    """
    return own if world() == 1 else _Gathered.apply(torch.atleast_1d(own.float()))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # each rank's loss depends on these rows
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world())[rank()]


def mean(own: Tensor) -> Tensor:
    """The mean over ranks, without gradient."""
    if world() == 1:
        return own
    total = own.detach().double()  # fp64: the mean of equal numbers is exactly that number
    dist.all_reduce(total)
    return (total / world()).to(own.dtype)


def largest(own: Tensor) -> Tensor:
    """The elementwise maximum over ranks, without gradient."""
    if world() > 1:
        own = own.detach().clone()
        dist.all_reduce(own, dist.ReduceOp.MAX)
    return own


def of_each(own: T) -> list[T]:
    """The objects of all ranks, in rank order; they must pickle."""
    if world() == 1:
        return [own]
    each: list[Any] = [None] * world()
    dist.all_gather_object(each, own)
    return each
