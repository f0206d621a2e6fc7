"""kd_lightning: ``distill`` trains a student from a teacher in memory, ``load_student`` reads one back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_lightning.api import distill
    from kd_lightning.results.student_files import load_student

__all__ = ["distill", "load_student"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: the package itself must load without torch."""
    if name == "distill":
        from kd_lightning.api import distill

        return distill
    if name == "load_student":
        from kd_lightning.results.student_files import load_student

        return load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
