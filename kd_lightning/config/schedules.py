"""Checks what runs beside a fit's rounds: schedules of learning rates, which count epochs, and callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch.callbacks import Checkpoint
from torch.optim.lr_scheduler import CyclicLR

from kd_lightning.config.node import located
from kd_lightning.config.signatures import as_dict, at

FITS = {"method": "trainer", "teacher.fit.method": "teacher.fit.trainer"}
"""Key of a method -> key of the trainer whose epochs its schedules count."""


def schedule_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """One line for each schedule that cannot be stepped once an epoch.

    Args:
        plain: the configuration as nested dicts and lists.
    """
    for method, trainer in FITS.items():
        epochs = at(plain, f"{trainer}.max_epochs")
        for key, node in as_dict(at(plain, method)).items():
            if str(key).startswith("scheduler") and isinstance(as_dict(node).get("_target_"), str):
                yield from _one(f"{method}.{key}", node, epochs, trainer)


def _one(path: str, node: Mapping[str, Any], epochs: Any, trainer: str) -> Iterator[str]:
    try:
        target = located(node["_target_"])
        step = inspect.signature(target.step)
    except (ImportError, AttributeError, ValueError, TypeError):
        return  # reported elsewhere, or a function whose result is not known here
    given = list(step.parameters.values())[1:]
    asks = [p.name for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if asks:
        yield (
            f"{path}: {target.__name__} asks for {asks[0]} at every step, and schedules count epochs only: choose "
            "another, such as torch.optim.lr_scheduler.CosineAnnealingLR"
        )
    up, down = node.get("step_size_up", 2000), node.get("step_size_down")
    if target is CyclicLR and isinstance(up, int) and isinstance(epochs, int) and up + (down or up) > epochs:
        yield (
            f"{path}.step_size_up={up}: schedules are stepped once an epoch, and there are {epochs} "
            f"({trainer}.max_epochs), which end before its cycle does: set {path}.step_size_up={max(1, epochs // 2)}"
        )
    total = node.get("total_steps")
    if total is None and isinstance(node.get("epochs"), int) and isinstance(node.get("steps_per_epoch"), int):
        total = node["epochs"] * node["steps_per_epoch"]
    if isinstance(total, int) and isinstance(epochs, int) and total != epochs:
        yield (
            f"{path}.total_steps={total}: schedules are stepped once an epoch, and there are {epochs} "
            f"({trainer}.max_epochs): set {path}.total_steps={epochs}"
        )


def callback_faults(path: str, trainer: Mapping[str, Any]) -> Iterator[str]:
    """One line for each callback that would write checkpoints of its own.

    Args:
        path: key of the trainer.
        trainer: its settings.
    """
    callbacks = trainer.get("callbacks")
    for node in callbacks if isinstance(callbacks, list) else [callbacks]:
        try:
            target = located(as_dict(node).get("_target_", ""))
        except ImportError:
            continue  # reported elsewhere
        if inspect.isclass(target) and issubclass(target, Checkpoint):
            yield (
                f"{path}.callbacks: {target.__name__} is left out: a fit keeps last.ckpt by itself, and its result is "
                "the student of the last step; remove it"
            )
