"""Faults of compositions whose images have several labels each, for which everything of this package says so."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from kd_lightning.config.composition import TeacherSettings
from kd_lightning.config.node import located
from kd_lightning.teachers.access import LEVELS
from kd_lightning.teachers.remote.function import Function

SEVERAL = "multi_label"
"""The kind of task; what ``needs`` ``task.multi_label`` takes it, besides what else it names."""
OURS = ("kd_lightning.methods.", "kd_lightning.sources.", "kd_lightning.metrics.")
METHODS = "use method=kd, supervised, or one that compares features, such as fitnet"
INSTEAD = {
    "controls": "use controls=none",
    "metrics": "use metrics=none",
    "source": "use source=real or queried",
    "student": "choose a network of classes, such as student=small_conv",
    "teacher.net": "choose a network of classes, such as teacher=small_conv",
}
"""Word in the path of what is refused -> what to type; the first counts, any other is a method."""


def several_faults(path: str, what: Any, needs: Set[str], *, single: bool) -> Iterator[str]:
    """One line for what is not made for several labels an image.

    Args:
        path: its key.
        what: a method, source, metric or network. Networks, and all of other packages, are refused only where they name
            other kinds of labels.
        needs: what it names.
        single: whether it names other kinds of labels.
    """
    ours = str(getattr(what, "__module__", "")).startswith(OURS)
    if (single or ours) and f"task.{SEVERAL}" not in needs:
        instead = next((way for word, way in INSTEAD.items() if word in path), METHODS)
        name = getattr(what, "__name__", path)
        yield f"{path}: {name} as it is set is not made for several labels an image: {instead}"


def several_teacher_faults(teacher: TeacherSettings) -> Iterator[str]:
    """One line for each setting of a teacher that has no meaning where an image has several labels."""
    if teacher.access in LEVELS and teacher.access not in ("white", "logits", "probs"):
        yield (
            f"teacher.access={teacher.access}: of several labels there is no first one: choose teacher.access=white, "
            "logits or probs"
        )
    if teacher.outputs not in ("logits", "sigmoid"):
        yield f"teacher.outputs={teacher.outputs}: several labels an image are told by logits or sigmoid, choose one"
    if teacher.abstain_below is not None:
        yield f"teacher.abstain_below={teacher.abstain_below}: is for one class an image, leave it out"
    if teacher.client is not None and _target(teacher.client.target) is not Function:
        yield (
            f"teacher.client: {teacher.client.target.rpartition('.')[2]} tells classes, but an image has several "
            "labels here: choose teacher=callable, or a network with teacher.access=probs"
        )


def _target(name: str) -> Any:
    try:
        return located(name)
    except ImportError:
        return None  # reported elsewhere
