"""What is wrong with how a teacher is asked, and what a method wants that it does not give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.config.composition import TeacherSettings
from kd_lightning.config.node import Node
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.teachers.access import LEVELS


@dataclass(frozen=True)
class StageTeacher:
    """A teacher that is the student of a stage."""

    net: Node
    access: str = "white"


Answering: TypeAlias = TeacherSettings | StageTeacher


def door_faults(teacher: Mapping[str, Any]) -> Iterator[str]:
    """One line for each fault of the settings by which a teacher is asked."""
    if teacher.get("client") is not None:
        if teacher.get("net") is not None:
            yield "teacher.client: there is a network, too, in teacher.net; ~teacher.client or teacher.net=null decides"
        if teacher.get("access") == "white":
            yield "teacher.access=white: a teacher that is not here only answers; set probs, topk or label"
    file = teacher.get("reference")
    if isinstance(file, str) and not Path(file).expanduser().exists():
        yield f"teacher.reference: there is no {file}"
    for key in ("smoothing", "min_coverage", "abstain_below"):
        value = teacher.get(key)
        if isinstance(value, int | float) and not 0 <= value <= 1:
            yield f"teacher.{key}={value}: expected a share between 0 and 1"


def teacher_needs_faults(
    path: str,
    name: str,
    needs: Set[str],
    teacher: Answering | None,
    instead: str = Distiller.instead_of_gradients,
) -> Iterator[str]:
    """One line for each thing that ``name``, at the key ``path``, needs of its teacher and does not get.

    Args:
        path: key of a method or source.
        name: of its class.
        needs: its requirements.
        teacher: the teacher that it gets, if any.
        instead: what to do where it needs gradients.
    """
    if teacher is None:
        if any(need.startswith("teacher") for need in needs):
            yield f"{path}: {name} needs a teacher, but teacher=none: choose one with teacher=NAME"
        return
    if "teacher.gradients" in needs and teacher.access != "white" and teacher.access in LEVELS:
        yield (
            f"{path}: {name} needs the teacher's gradients, but teacher.access={teacher.access} gives answers alone: "
            f"{instead}"
        )
    if "teacher.features" in needs and teacher.access != "white" and teacher.access in LEVELS:
        yield (
            f"{path}: {name} looks inside the teacher, but teacher.access={teacher.access} gives answers alone: set "
            "teacher.access=white, or choose method=kd"
        )
    net = teacher.net
    if "teacher.batch_norm" in needs and net is not None and not has_batch_norm(net):
        by_setting = "batch_norm" in net
        how = "set teacher.net.batch_norm=true" if by_setting else "choose another teacher, such as teacher=resnet34"
        how += ", or choose a method that reads none, such as method=dafl" if path == "method" else ""
        yield (
            f"{path}: {name} reads the teacher's batch-norm statistics, but {net.target.rpartition('.')[2]} "
            f"as it is set has no batch norm: {how}"
        )


def has_batch_norm(net: Node) -> bool:
    """Whether a network has a batch norm; True if it cannot be built without weights."""
    try:
        with torch.device("meta"):
            return any(isinstance(m, _BatchNorm) for m in net.build().modules())
    except Exception:  # it reads its weights, or is a fault that is reported elsewhere
        return True
