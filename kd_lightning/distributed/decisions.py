"""Decisions of the first rank that all ranks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from kd_lightning.distributed import collectives
from kd_lightning.errors import UserError

T = TypeVar("T")


def decided(decide: Callable[[], T]) -> T:
    """Run ``decide`` on rank 0 after all ranks have arrived, and return its result on every rank.

    Args:
        decide: called only on rank 0; returns something small that pickles.

    Raises:
        UserError: raised by ``decide``; on every rank.
    """
    if collectives.world() == 1:
        return decide()
    dist.all_reduce(torch.zeros(1))  # a barrier: no rank still uses what rank 0 is about to rename or remove
    verdict: list[Any] = [None, None]
    failure: Exception | None = None
    if collectives.rank() == 0:
        collectives.deciding = True
        try:
            verdict[0] = decide()
        except Exception as error:
            failure, verdict[1] = error, str(error) or type(error).__name__
        finally:
            collectives.deciding = False
    dist.broadcast_object_list(verdict)
    if failure is not None:
        raise failure
    if verdict[1] is not None:
        raise UserError(verdict[1])
    return verdict[0]
