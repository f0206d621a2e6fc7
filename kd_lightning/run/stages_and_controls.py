"""The fits besides the student's: stages before it, controls after it, and the teachers they get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_lightning.config.composition import Training
from kd_lightning.core.tasks import Task
from kd_lightning.data.dataset import Dataset
from kd_lightning.distributed import collectives
from kd_lightning.engine.fit import FitResult
from kd_lightning.run.teacher import TeacherHandle
from kd_lightning.store.files import digest
from kd_lightning.teachers.white_box import FrozenTeacher


def control_of(control: Training, dataset: Dataset, teacher: TeacherHandle | None, updates: int) -> Training | None:
    """The training of a control; None where it is impossible, such as on real labels without data or without labels.

    Args:
        control: from the composition.
        dataset: the run's data set.
        teacher: the run's teacher, if any.
        updates: of the student's fit, which set the control's length where that is asked for.
    """
    if control.asks and control.taught_by is None and (teacher is None or not teacher.white):
        return None
    if not control.asks and dataset.train is None:
        return None
    unlabelled = dataset.train is not None and not dataset.train.labelled
    if unlabelled and "source.labels" in control.method.requirements() and "load" not in control.source:
        return None
    images = None if dataset.train is None else len(dataset.train)
    return control.stretched(updates, images, collectives.world())


def handed(
    teacher: TeacherHandle | None,
    *,
    asks: bool = True,
    taught_by: FitResult | None = None,
    source_teacher: TeacherHandle | None = None,
) -> dict[str, Any]:
    """The teacher arguments of :func:`~kd_lightning.engine.fit.fit`: fresh objects, with counters at zero.

    Args:
        teacher: the run's teacher, if any.
        asks: whether the fit asks it.
        taught_by: the stage whose student is the teacher instead.
        source_teacher: the source's own teacher, if it has one.
    """
    given: dict[str, Any] = {"teacher": teacher.hand_out(), "teacher_key": teacher.key} if teacher and asks else {}
    if taught_by:
        given = {"teacher": FrozenTeacher(taught_by.network), "teacher_key": digest([taught_by.key])}
    if source_teacher:
        given |= {"source_teacher": source_teacher.hand_out(), "source_teacher_key": source_teacher.key}
    return given


def weak_teacher(controls: Mapping[str, Training], metrics: Mapping[str, float | None], task: Task) -> str | None:
    """A warning where the student's network, trained without the teacher, is as good as the teacher; else None."""
    teacher = metrics.get(f"adapted/{task.headline}", metrics.get(f"teacher/{task.headline}"))
    for name, control in controls.items():
        alone = metrics.get(f"{name}/{task.headline}")
        elsewhere = "load" in control.source  # trained on other images
        if control.asks or elsewhere or teacher is None or alone is None:
            continue
        if (alone >= teacher) if task.higher_is_better else (alone <= teacher):
            return (
                f"the teacher's {task.headline}, {teacher:.4g}, is no better than that of {name}, {alone:.4g}, which "
                "had no teacher: it has little to teach. Train it longer, or choose another"
            )
    return None
