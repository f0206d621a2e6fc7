"""Curves of the metrics that a configuration adds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torchmetrics import Metric

from kd_lightning.config.composition import Composition, Training
from kd_lightning.config.node import Node, located
from kd_lightning.core.own_metrics import add, values
from kd_lightning.core.tasks import Task, kept


def own_metrics(training: Training) -> dict[str, Node]:
    """The torchmetrics metrics that a run adds to its student's fit, by name; empty for its other fits."""
    if not isinstance(training, Composition):
        return {}
    return {name: node for name, node in training.metrics.items() if _is_metric(located(node.target))}


def _is_metric(target: Any) -> bool:
    return inspect.isclass(target) and issubclass(target, Metric)


class OwnMetrics(Callback):
    """Logs each metric of the student on the validation images as ``val/NAME`` after every epoch.

    Args:
        metrics: new ones, by name.
        task: what the student's outputs mean.
        classes: names of the classes.
    """

    def __init__(self, metrics: Mapping[str, Metric], task: Task, classes: Sequence[str]) -> None:
        self.metrics, self.task, self.classes = metrics, task, classes

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the last epoch."""
        for metric in self.metrics.values():
            metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count a batch: ``outputs`` are the student's; a method that returns none has no such curves."""
        if outputs is None:
            return
        told = keep(outputs) if (keep := kept(self.task)) else outputs
        for name, metric in self.metrics.items():
            add(name, metric, self.task, told, batch.y)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's values."""
        for name, metric in self.metrics.items():
            if metric.update_called:
                pl_module.log_dict({f"val/{key}": value for key, value in values(name, metric, self.classes).items()})
