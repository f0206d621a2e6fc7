"""What an adapter is told, and what it hands back: their trace, and our side ready to run with the same weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step_time import ours as under_lightning
from torch import nn

from kd_lightning.core.tasks import Classification
from kd_lightning.data.loader import TensorLoader
from kd_lightning.distributed.device import fast_precision
from kd_lightning.engine.compiled import compile_networks
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.data_free import Rounds
from kd_lightning.teachers.white_box import FrozenTeacher
from references.observed import Trace, traced

GREY: dict[str, Any] = {"mean": [0.1307], "std": [0.3081]}
COLOUR: dict[str, Any] = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
MANY = 10_000
adam, sgd = partial(torch.optim.Adam, fused=True), partial(torch.optim.SGD, momentum=0.9, fused=True)


@dataclass(frozen=True)
class At:
    """How their side is run.

    Args:
        folder: the checkout.
        batch: images of a step.
        limit: backward passes to make.
        checking: whether losses are compared, so that whatever is drawn must be the same on both sides.
    """

    folder: Path
    batch: int
    limit: int
    checking: bool


@dataclass
class Ours:
    """Our method under Lightning, with everything that a run has.

    Args:
        method: makes it, with the weights that theirs began with.
        batches: makes its loader, in a memory format.
        val: what it is evaluated on after each epoch.
        epochs: as many as a run has.
        synthetic: whether the batches are generated images, which a run looks at once an epoch.
        around: entered around the fit.
    """

    method: Callable[[], Distiller]
    batches: Callable[[torch.memory_format], Any] = lambda _: Rounds(MANY)
    val: TensorLoader | None = None
    epochs: int = 1
    synthetic: bool = False
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def run(self, trace: Trace, limit: int, *, fast: bool, compiled: bool = False) -> None:
        """Fit until ``limit`` backward passes were noted.

        Args:
            trace: notes them.
            limit: their number.
            fast: channels last, the teacher's batch norms folded, and bf16 where the CPU has it.
            compiled: teacher and student by torch.compile.
        """
        layout = torch.channels_last if fast else torch.contiguous_format
        method = self.method().to(memory_format=layout)  # type: ignore[call-overload]
        precision = fast_precision("cpu") if fast else "32-true"
        if fast and isinstance(method.teacher, FrozenTeacher):
            method.teacher.fold_batchnorm()
        if compiled:
            compile_networks(method, "inductor")
        watched = {"val": self.val, "epochs": self.epochs, "synthetic": self.synthetic}
        with self.around(), traced(trace, limit):
            under_lightning(method.train(), self.batches(layout), precision, 1, **watched)


def method(
    make: Callable[..., Distiller], teacher: nn.Module, student: nn.Module, stats: Any, **settings: Any
) -> Callable[[], Distiller]:
    """Makes our method on copies of bare networks as they are now, which normalise with the statistics."""
    begin = copy.deepcopy((teacher, student, settings))

    def made() -> Distiller:
        *nets, own = copy.deepcopy(begin)
        teacher, student = (Normalized(net, **stats) for net in nets)
        return make(student=student, teacher=FrozenTeacher(teacher), task=Classification(10), **own)

    return made
