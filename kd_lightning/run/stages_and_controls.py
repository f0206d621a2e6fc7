"""The fits beside the student's: stages before it, controls after it, and what they are handed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_lightning.config.composition import Training
from kd_lightning.core.tasks import Task
from kd_lightning.data.dataset import Dataset
from kd_lightning.distributed import collectives
from kd_lightning.engine.fit import FitResult
from kd_lightning.run.teacher import TeacherHandle


def control_of(
    control: Training, dataset: Dataset, teacher: TeacherHandle | None, student: FitResult
) -> Training | None:
    """What a control is trained by; None where it cannot be, such as on real labels without data.

    Args:
        control: as the composition has it.
        dataset: the images that exist.
        teacher: of the run.
        student: of the run.
    """
    if control.asks and (teacher is None or not teacher.white):
        return None
    if not control.asks and dataset.train is None:
        return None
    images = None if dataset.train is None else len(dataset.train)
    return control.stretched(student.report["student_updates"], images, collectives.world())


def handed(
    teacher: TeacherHandle | None, *, asks: bool = True, source_teacher: TeacherHandle | None = None
) -> dict[str, Any]:
    """The teachers as a fit is given them: objects of its own, whose counters begin at zero.

    Args:
        teacher: of the run, for those who ask it.
        asks: whether the fit does.
        source_teacher: of the fit's source, if it has one of its own.
    """
    given = {"teacher": teacher.hand_out(), "teacher_key": teacher.key} if teacher and asks else {}
    if source_teacher:
        given |= {"source_teacher": source_teacher.hand_out(), "source_teacher_key": source_teacher.key}
    return given


def weak_teacher(controls: Mapping[str, Training], metrics: Mapping[str, float | None], task: Task) -> str | None:
    """What to say where the student's network, trained without the teacher, is as good as the teacher."""
    teacher = metrics.get(f"teacher/{task.headline}")
    for name, control in controls.items():
        alone = metrics.get(f"{name}/{task.headline}")
        elsewhere = "load" in control.source  # it learned from other images
        if control.asks or elsewhere or teacher is None or alone is None:
            continue
        if (alone >= teacher) if task.higher_is_better else (alone <= teacher):
            return (
                f"the teacher's {task.headline}, {teacher:.4g}, is no better than that of {name}, {alone:.4g}, which "
                "had no teacher: it has little to teach. Train it longer, or choose another"
            )
    return None
