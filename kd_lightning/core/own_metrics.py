"""torchmetrics metrics that a configuration adds: of what a network answers, against the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.strangers import in_a_line
from kd_lightning.core.tasks import Regression, Task
from kd_lightning.errors import ConfigError


def add(name: str, metric: Metric, task: Task, output: Tensor, label: Tensor) -> None:
    """Update a metric with a batch.

    Args:
        name: of the metric in the configuration.
        metric: any that compares predictions with labels.
        task: what the outputs mean; it gets numbers in their unit, probabilities of several labels, and logits or
            masks as they are.
        output: what :func:`~kd_lightning.core.tasks.kept` keeps of a network's outputs.
        label: the labels.

    Raises:
        ConfigError: the metric does not take them.
    """
    told = task.numbers(output) if isinstance(task, Regression) else output
    if isinstance(task, MultiLabel):
        told, label = output.sigmoid(), label.long()
    try:
        metric.update(told, label)
    except Exception as error:  # torchmetrics raises many kinds of errors on outputs that it does not take
        raise ConfigError(
            f"metrics.{name}: {type(metric).__name__} does not take outputs {tuple(told.shape)} and labels "
            f"{tuple(label.shape)}: {in_a_line(error)}"
        ) from error


def values(name: str, metric: Metric, classes: Sequence[str]) -> dict[str, float]:
    """The metric's value, by its name; of several values those that are numbers, by their own names or the classes'.

    Raises:
        ConfigError: it cannot be computed.
    """
    try:
        value = metric.compute()
    except Exception as error:  # see above
        raise ConfigError(f"metrics.{name}: {type(metric).__name__}: {in_a_line(error)}") from error
    return dict(_named(name, value, classes))


def _named(name: str, value: Any, classes: Sequence[str]) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _named(f"{name}/{key}", part, classes)]
    if isinstance(value, float | int) or (isinstance(value, Tensor) and value.numel() == 1):
        return [(name, float(value))]
    if isinstance(value, Tensor) and value.shape == (len(classes),):
        return [(f"{name}/{each}", float(part)) for each, part in zip(classes, value, strict=True)]
    return []
