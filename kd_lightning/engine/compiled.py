"""torch.compile of what a fit runs."""

from __future__ import annotations

from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.teachers.white_box import FrozenTeacher


def compile_networks(method: Distiller, backend: str) -> None:
    """Compile a method's student and its teacher if that is white-box, each at its first call."""
    method.student.compile(backend=backend)
    if isinstance(method.teacher, FrozenTeacher):
        method.teacher.compile_with(backend)


def compile_adapters(method: Distill, backend: str) -> None:
    """Compile the adapters of a method's terms, once they are built, each at its first call."""
    for name, term in method.terms.items():
        if term.adapt is not None:
            method.get_submodule(f"terms.{name}.adapt").compile(backend=backend)
