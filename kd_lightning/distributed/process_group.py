"""Joining and leaving the process group of a run."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from kd_lightning.distributed.collectives import rank, together
from kd_lightning.distributed.launch import MEETING, ProcessInfo
from kd_lightning.errors import RankLost

MEET = timedelta(minutes=30)
"""Longest wait for the other ranks to start."""
PATIENCE = timedelta(days=1)
"""Longest wait in a collective: rank 0 may be optimising a pool of images."""

_place: ProcessInfo | None = None


def joined() -> ProcessInfo | None:
    """The place that this process took with :func:`join`; None for a single process."""
    return _place


def join(place: ProcessInfo, device: str) -> None:
    """Join the process group; the first thing that a rank does.

    Args:
        place: of this process.
        device: ``cpu``, or the GPU of this rank.
    """
    global _place
    _place = place
    if place.rank:
        warnings.simplefilter("ignore")  # rank 0 shows them
    if device != "cpu":
        torch.cuda.set_device(device)
    if MEETING in os.environ:  # a file is enough on one machine, and two jobs cannot collide on a port
        store: Any = dist.FileStore(os.environ[MEETING], place.world)
    else:
        _tell_torch(place)
        store, _, _ = next(dist.rendezvous("env://", place.rank, place.world, timeout=MEET))
    store.set_timeout(PATIENCE)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=PATIENCE)


def _tell_torch(place: ProcessInfo) -> None:
    """Set the variables that torchrun sets and SLURM does not."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        slurm = SLURMEnvironment()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    os.environ |= {"RANK": str(place.rank), "LOCAL_RANK": str(place.local_rank), "WORLD_SIZE": str(place.world)}


def environment() -> dict[str, Any]:
    """Trainer arguments for ranks that this command started, so that Lightning ignores a surrounding SLURM job."""
    from lightning.fabric.plugins.environments import LightningEnvironment

    return {"plugins": [LightningEnvironment()]} if MEETING in os.environ else {}


def leave() -> None:
    """Leave the process group at the end of the run."""
    if together():
        dist.destroy_process_group()


@contextmanager
def losing() -> Iterator[None]:
    """Inside, the loss of a rank ends the others with one line.

    Raises:
        RankLost: on the ranks that remain.
    """
    try:
        yield
    except RuntimeError as error:
        if together() and (isinstance(error, dist.DistError) or "gloo" in str(error) or "by peer" in str(error)):
            raise RankLost(
                f"rank {rank()} of {dist.get_world_size()} lost another, whose own message says why; the same command "
                f"goes on from the last checkpoint ({str(error).splitlines()[0]})"
            ) from error
        raise


def taking_turns() -> Any:
    """Lightning's strategy for methods that train two networks alternately and own their buffers."""
    from lightning.pytorch.strategies import DDPStrategy

    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    settings: dict[str, Any] = {"find_unused_parameters": True, buffers: False}
    return DDPStrategy(**settings)
