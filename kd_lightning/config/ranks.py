"""What a composition's trainer says of ranks: what is wrong with it, and what ``auto`` comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, open_dict

from kd_lightning.distributed.launch import AUTO, wanted
from kd_lightning.distributed.process_group import joined, taking_turns
from kd_lightning.errors import ConfigError

FOR_ALL_FITS = ("devices", "num_nodes", "strategy", "accelerator")
"""Of the trainer: the processes of a run are there before its first fit."""
SOLO = {"devices": 1, "strategy": None, "num_nodes": None, "sync_batchnorm": None, "global_batch_losses": None}
"""What the trainer of several becomes for one; None for no such key."""


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
    turns = (
        isinstance(strategy, Mapping)
        and strategy.get("_target_") == f"{taking_turns.__module__}.{taking_turns.__name__}"
    )
    if (devices > 1 or trainer.get("num_nodes") not in (None, 1)) and not turns:
        yield "trainer: several devices need a strategy that lets two networks take turns: choose trainer=ddp"
    if gpus and devices > gpus:
        yield f"trainer.devices={trainer.get('devices')}: there are {gpus} GPUs"
    if accelerator == "cpu" and trainer.get("sync_batchnorm") is True:
        yield "trainer.sync_batchnorm=True: it works on GPUs alone; auto switches it on there"


def settle(trainer: DictConfig, *, planning: bool = False) -> None:
    """Put what the ranks that are here make of it in place of every ``auto`` of a composition's trainer.

    Args:
        trainer: its node.
        planning: take the ranks for granted that it asks for.

    Raises:
        ConfigError: it asks for other ranks than there are.
    """
    place = joined()
    asked, asked_nodes = wanted(trainer), trainer.get("num_nodes") or 1
    here, nodes = (place.local_world, place.nodes) if place else (1, 1)
    if planning:
        here, nodes = asked, asked_nodes
    elif asked_nodes not in (1, nodes) or (asked != here and not (place and trainer.devices in AUTO)):
        raise ConfigError(_mismatch(asked, asked_nodes, here, nodes))
    with open_dict(trainer):
        if here * nodes == 1:
            for key, value in SOLO.items():
                if value is None:
                    trainer.pop(key, None)
                elif not isinstance(trainer.get(key), ListConfig):
                    trainer[key] = value
            return
        if not isinstance(trainer.devices, ListConfig):
            trainer.devices = here
        trainer.num_nodes = nodes
        if trainer.get("sync_batchnorm") == "auto":
            accelerator = trainer.get("accelerator", "auto")
            trainer.sync_batchnorm = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


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
