"""The trainer's settings of ranks: their faults, and the values of ``auto``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kd_lightning.distributed.launch import AUTO, wanted
from kd_lightning.distributed.process_group import joined, taking_turns
from kd_lightning.errors import ConfigError

FOR_ALL_FITS = ("devices", "num_nodes", "strategy", "accelerator")
"""Settings of the trainer that all fits share, because a run's processes start before its first fit."""
SOLO = {"devices": 1, "strategy": None, "num_nodes": None, "sync_batchnorm": None, "global_batch_losses": None}
"""Settings of the trainer on a single rank; None removes the key."""


def rank_faults(path: str, trainer: Mapping[str, Any]) -> Iterator[str]:
    """The faults of a resolved trainer that concern ranks, one line each.

    Args:
        path: its key: ``trainer`` itself, or the part that a teacher's fit, a stage or a control changes.
        trainer: its settings.
    """
    if path != "trainer":
        for key in FOR_ALL_FITS:
            if key in trainer:
                yield f"{path}.{key}: all fits of a run share the processes it was started with; set trainer.{key}"
        return
    if any(not isinstance(trainer.get(key, 1), int | str | list) for key in ("devices", "num_nodes")):
        return  # reported elsewhere
    accelerator, devices = trainer.get("accelerator", "auto"), wanted(trainer)
    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    strategy = trainer.get("strategy")
    turns = (
        isinstance(strategy, Mapping)
        and strategy.get("_target_") == f"{taking_turns.__module__}.{taking_turns.__name__}"
    )
    if (devices > 1 or trainer.get("num_nodes") not in (None, 1)) and not turns:
        yield "trainer: several devices need a strategy that lets two networks take turns: choose trainer=ddp"
    if accelerator in ("gpu", "cuda") and not gpus:
        yield f"trainer.accelerator={accelerator}: there is no GPU that torch can use: set cpu or auto"
    if gpus and devices > gpus:
        yield f"trainer.devices={trainer.get('devices')}: there are {gpus} GPUs"
    if accelerator == "cpu" and trainer.get("sync_batchnorm") is True:
        yield "trainer.sync_batchnorm=True: it works on GPUs alone; auto switches it on there"


def settle(trainer: Mapping[str, Any], *, planning: bool = False) -> dict[str, Any]:
    """The settings of a trainer, with the values for the started ranks in place of every ``auto``.

    Args:
        trainer: its settings.
        planning: assume the ranks that it asks for, whether or not they were started.

    Raises:
        ConfigError: it asks for other ranks than were started.
    """
    place = joined()
    settled = dict(trainer)
    devices = trainer.get("devices", "auto")
    asked, asked_nodes = wanted(trainer), trainer.get("num_nodes") or 1
    here, nodes = (place.local_world, place.nodes) if place else (1, 1)
    if planning:
        here, nodes = asked, asked_nodes
    elif asked_nodes not in (1, nodes) or (asked != here and not (place and devices in AUTO)):
        raise ConfigError(_mismatch(asked, asked_nodes, here, nodes))
    named = isinstance(devices, list | tuple)
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
    if joined() is None:
        return (
            f"the trainer asks for {asked} ranks on {asked_nodes} machine(s), and this process is alone: the command "
            "kd-lightning starts those of one machine, torchrun or srun those of several"
        )
    hint = "give it trainer=ddp" if asked == 1 else f"set trainer.devices={here} trainer.num_nodes={nodes}"
    return (
        f"{here} ranks were started on each of {nodes} machine(s), and the trainer asks for {asked} on each of "
        f"{asked_nodes}: {hint}, or start as many as it asks for"
    )
