"""The kinds of tasks, and what is made for another kind than that of the data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Set
from typing import Any

from kd_lightning.config.node import Node, located
from kd_lightning.config.several_labels import SEVERAL, several_faults
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Regression

KINDS = {"classification": "classes", "regression": "numbers", "segmentation": "maps of classes"}


KINDS |= {SEVERAL: "several an image"}
"""The labels of each kind of task. What names kinds of tasks in its ``needs`` takes only those."""


def kind_of(load: Node | None) -> str:
    """The kind of a data set's task: ``classification``, ``regression``, ``segmentation`` or ``multi_label``.

    Args:
        load: the node that reads the data set, or None; without a setting ``task`` the labels are classes.
    """
    task = class_of(load and Node.of(load.get("task")))
    for kind, named in (("regression", Regression), ("segmentation", Segmentation), (SEVERAL, MultiLabel)):
        if inspect.isclass(task) and issubclass(task, named):
            return kind
    return "classification"


def of_numbers(load: Node | None) -> bool:
    """Whether the labels of a data set are numbers."""
    return kind_of(load) == "regression"


def task_faults(path: str, what: Any, needs: Set[str], kind: str) -> Iterator[str]:
    """One line if ``what``, at the key ``path``, is made for other kinds of tasks than ``kind``."""
    name = getattr(what, "__name__", path)
    made_for = [task for task in KINDS if f"task.{task}" in needs and task != SEVERAL]
    if kind == SEVERAL:
        yield from several_faults(path, what, needs, single=bool(made_for))
        return
    if not made_for or kind in made_for:
        return
    wanted, labels = " or ".join(KINDS[task] for task in made_for), KINDS[kind]
    ways = {
        "regression": ": use method=kd or supervised with source=real, and controls and metrics that need no class",
        "segmentation": ": use method=kd or supervised with source=real, a network of segmentation such as "
        "student=small_segmenter, and metrics=none",
    }
    as_set = " as it is set" if "task.classification" in needs else ""
    yield f"{path}: {name}{as_set} is made for {wanted}, but the labels of these data are {labels}{ways.get(kind, '')}"


def class_of(node: Node | None) -> Any:
    """The class that a node names; None without one, or if it cannot be imported, which is told elsewhere."""
    try:
        return None if node is None else located(node.target)
    except ImportError:
        return None
