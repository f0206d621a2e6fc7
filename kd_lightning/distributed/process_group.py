"""How the ranks of a run meet and part, once :mod:`kd_lightning.distributed.launch` or a scheduler has started them."""

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
from kd_lightning.distributed.launch import MEETING, Place
from kd_lightning.errors import RankLost

MEET = timedelta(minutes=30)
"""How long ranks wait for each other to start."""
PATIENCE = timedelta(days=1)
"""How long they wait later on: the first may be optimising a pool of images."""

_place: Place | None = None


def joined() -> Place | None:
    """The place that this process took with :func:`join`; None where it is the only one."""
    return _place


def join(place: Place, device: str) -> None:
    """Meet the others, before anything else is done.

    Args:
        place: of this process among them.
        device: ``cpu``, or the GPU of this rank.
    """
    global _place
    _place = place
    if place.rank:
        warnings.simplefilter("ignore")  # the first rank says it
    if device != "cpu":
        torch.cuda.set_device(device)
    if MEETING in os.environ:  # on one machine a file does, and no two jobs can want the same port
        store: Any = dist.FileStore(os.environ[MEETING], place.world)
    else:
        _tell_torch(place)
        store, _, _ = next(dist.rendezvous("env://", place.rank, place.world, timeout=MEET))
    store.set_timeout(PATIENCE)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=PATIENCE)


def _tell_torch(place: Place) -> None:
    """What torchrun sets by itself, under SLURM."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        slurm = SLURMEnvironment()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    os.environ |= {"RANK": str(place.rank), "LOCAL_RANK": str(place.local_rank), "WORLD_SIZE": str(place.world)}


def environment() -> dict[str, Any]:
    """What a trainer is told of ranks that the command started: SLURM may be about, but it started one process."""
    from lightning.fabric.plugins.environments import LightningEnvironment

    return {"plugins": [LightningEnvironment()]} if MEETING in os.environ else {}


def leave() -> None:
    """Part from the others at the end of the page."""
    if together():
        dist.destroy_process_group()


@contextmanager
def losing() -> Iterator[None]:
    """Inside, a rank that vanishes ends the others with one line.

    Raises:
        RankLost: what the others report then.
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
    """Lightning's strategy for methods in which two networks learn by turns, and which own their buffers."""
    from lightning.pytorch.strategies import DDPStrategy

    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the older name
    settings: dict[str, Any] = {"find_unused_parameters": True, buffers: False}
    return DDPStrategy(**settings)
