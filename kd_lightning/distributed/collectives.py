"""Several processes, one page: every rank runs it from the start and takes the same decisions.

How ranks are started, :mod:`kd_lightning.distributed.launch` says; here is what the page asks for once it runs on them.
Without others, every function is what it would be for one process.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from kd_lightning.distributed.launch import AUTO, MEETING, Place, wanted
from kd_lightning.errors import ConfigError, RankLost, UserError

T = TypeVar("T")

MEET = timedelta(minutes=30)
"""How long ranks wait for each other to start."""
PATIENCE = timedelta(days=1)
"""How long they wait later on: the first may be optimising a pool of images."""
FOR_ALL_FITS = ("devices", "num_nodes", "strategy", "accelerator")
"""Of the trainer: the processes of a run are there before its first fit."""
SOLO = {"devices": 1, "strategy": None, "num_nodes": None, "sync_batchnorm": None, "global_batch_losses": None}
"""What the trainer of several becomes for one; None for no such key."""

_place: Place | None = None
_deciding = False


def rank() -> int:
    """Which of the processes this is; 0 also where it is the only one."""
    return dist.get_rank() if _together() else 0


def world() -> int:
    """How many take part in what is done now: 1 inside :func:`decided`."""
    return dist.get_world_size() if _together() and not _deciding else 1


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


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
    if _together():
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
        if _together() and (isinstance(error, dist.DistError) or "gloo" in str(error) or "by peer" in str(error)):
            raise RankLost(
                f"rank {rank()} of {dist.get_world_size()} lost another, whose own message says why; the same command "
                f"goes on from the last checkpoint ({str(error).splitlines()[0]})"
            ) from error
        raise


def decided(decide: Callable[[], T]) -> T:
    """What the first rank finds or does once all have come here, known to all; meanwhile they wait.

    Args:
        decide: called on the first rank alone; returns something small that pickles.

    Raises:
        UserError: what ``decide`` raised, on every rank.
    """
    global _deciding
    if world() == 1:
        return decide()
    dist.all_reduce(torch.zeros(1))  # all are here: what the first one renames or removes, nobody works in any more
    verdict: list[Any] = [None, None]
    failure: Exception | None = None
    if rank() == 0:
        _deciding = True
        try:
            verdict[0] = decide()
        except Exception as error:
            failure, verdict[1] = error, str(error) or type(error).__name__
        finally:
            _deciding = False
    dist.broadcast_object_list(verdict)
    if failure is not None:
        raise failure
    if verdict[1] is not None:
        raise UserError(verdict[1])
    return verdict[0]


def gathered(own: Tensor) -> Tensor:
    """The rows (N, ...) of every rank, in their order and in fp32, through which gradients reach this rank's.

    A loss on the result, computed by every rank, has after DDP's averaging the gradient it would have on one.
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
    total = own.detach().double()  # of equal numbers exactly that number, for any number of ranks
    dist.all_reduce(total)
    return (total / world()).to(own.dtype)


def largest(own: Tensor) -> Tensor:
    """The largest over ranks, element by element, without gradient."""
    if world() > 1:
        own = own.detach().clone()
        dist.all_reduce(own, dist.ReduceOp.MAX)
    return own


def of_each(own: T) -> list[T]:
    """What each rank holds, in their order; anything that pickles."""
    if world() == 1:
        return [own]
    each: list[Any] = [None] * world()
    dist.all_gather_object(each, own)
    return each


def taking_turns() -> Any:
    """Lightning's strategy for methods in which two networks learn by turns, and which own their buffers."""
    from lightning.pytorch.strategies import DDPStrategy

    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the older name
    settings: dict[str, Any] = {"find_unused_parameters": True, buffers: False}
    return DDPStrategy(**settings)


def rank_faults(path: str, trainer: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a resolved trainer as far as ranks go, one line each.

    Args:
        path: where it stands: ``trainer`` itself, or what a teacher's fit, a stage or a control changes in it.
        trainer: its settings.
    """
    if path != "trainer":
        for key in FOR_ALL_FITS:
            if key in trainer:
                yield f"{path}.{key}: all fits of a run share the processes it was started with; set trainer.{key}"
        return
    if any(not isinstance(trainer.get(key, 1), int | str | list) for key in ("devices", "num_nodes")):
        return  # a fault that is noted already
    accelerator, devices = trainer.get("accelerator", "auto"), wanted(trainer)
    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    strategy = trainer.get("strategy")
    turns = isinstance(strategy, Mapping) and strategy.get("_target_") == f"{__name__}.{taking_turns.__name__}"
    if (devices > 1 or trainer.get("num_nodes") not in (None, 1)) and not turns:
        yield "trainer: several devices need a strategy that lets two networks take turns: choose trainer=ddp"
    if gpus and devices > gpus:
        yield f"trainer.devices={trainer.get('devices')}: there are {gpus} GPUs"
    if accelerator == "cpu" and trainer.get("sync_batchnorm") is True:
        yield "trainer.sync_batchnorm=True: it works on GPUs alone; auto switches it on there"


def settle(trainer: Mapping[str, Any], *, planning: bool = False) -> dict[str, Any]:
    """A trainer's settings, what the ranks that are here make of it in place of every ``auto``.

    Args:
        trainer: its settings.
        planning: take the ranks for granted that it asks for.

    Raises:
        ConfigError: it asks for other ranks than there are.
    """
    settled = dict(trainer)
    asked, asked_nodes = wanted(trainer), trainer.get("num_nodes") or 1
    here, nodes = (_place.local_world, _place.nodes) if _place else (1, 1)
    if planning:
        here, nodes = asked, asked_nodes
    elif asked_nodes not in (1, nodes) or (asked != here and not (_place and trainer["devices"] in AUTO)):
        raise ConfigError(_mismatch(asked, asked_nodes, here, nodes))
    named = isinstance(trainer["devices"], list | tuple)
    if here * nodes == 1:
        for key, value in SOLO.items():
            if value is None:
                settled.pop(key, None)
            elif not named:
                settled[key] = value
        return settled
    if not named:
        settled["devices"] = here
    settled["num_nodes"] = nodes
    if trainer.get("sync_batchnorm") == "auto":
        accelerator = trainer.get("accelerator", "auto")
        settled["sync_batchnorm"] = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return settled


def _mismatch(asked: int, asked_nodes: int, here: int, nodes: int) -> str:
    if _place is None:
        return (
            f"the trainer asks for {asked} ranks on {asked_nodes} machine(s), and this process is alone: the command "
            "kd-lightning starts those of one machine, torchrun or srun those of several"
        )
    hint = "give it trainer=ddp" if asked == 1 else f"set trainer.devices={here} trainer.num_nodes={nodes}"
    return (
        f"{here} ranks were started on each of {nodes} machine(s), and the trainer asks for {asked} on each of "
        f"{asked_nodes}: {hint}, or start as many as it asks for"
    )
