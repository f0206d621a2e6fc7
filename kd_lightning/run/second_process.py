"""What the second process of a run does: train the controls that need nothing of the student."""

from __future__ import annotations

from kd_lightning.config.composition import Composition, Training
from kd_lightning.config.node import located, thaw
from kd_lightning.data.load import dataset_digest
from kd_lightning.engine.data import load_data
from kd_lightning.engine.fit import RunContext, build_network, fit
from kd_lightning.run.run import settle
from kd_lightning.run.stages_and_controls import control_of, handed
from kd_lightning.run.teacher import TeacherHandle, obtain_teacher
from kd_lightning.sources.data_free import Free
from kd_lightning.store.artifacts import Store
from kd_lightning.tracking.backends import Dashboards

UNFORESEEN = ("max_time", "limit_train_batches", "callbacks")
"""Settings of a trainer that leave open how many updates a fit makes."""


def independent(composition: Composition) -> dict[str, Training]:
    """The controls that refer to no stage and ask nobody who counts his answers."""
    white = composition.teacher is None or composition.teacher.access == "white"
    return {
        name: control
        for name, control in composition.controls.items()
        if (white or not control.asks) and control.source_teacher is None and "stage:" not in str(control.plain())
    }


def train_controls(composition: Composition) -> None:
    """Train the independent controls, as far as their length can be foreseen, and leave them in the store.

    Args:
        composition: as :func:`~kd_lightning.config.check.check` returns it.
    """
    composition = settle(composition)
    store = Store(**thaw(composition.artifacts))
    dataset = load_data(composition.data, store, composition.source)
    bench = RunContext(store, dataset, dataset_digest(dataset), dataset.task, Dashboards())
    teacher: TeacherHandle | None = None
    for name, control in independent(composition).items():
        if control.stretch and not foreseeable(composition):
            continue
        if control.asks and teacher is None:
            teacher = obtain_teacher(composition, bench)
        updates = foreseen_updates(composition, bench, teacher) if control.stretch else 0
        own = control_of(control, dataset, teacher, updates)
        if own is not None:
            fit(own, bench, phase=name, **handed(teacher, asks=own.asks))


def foreseeable(composition: Composition) -> bool:
    """Whether the settings alone tell how many updates the student's fit makes."""
    open_ends = any(composition.trainer.get(key) for key in UNFORESEEN)
    return located(composition.source.target) is Free and not open_ends


def foreseen_updates(composition: Composition, bench: RunContext, teacher: TeacherHandle | None) -> int:
    """The updates that the student's fit will make, where they are foreseeable."""
    student, given = build_network(composition), handed(teacher)
    method = composition.method.build(student=student, teacher=given.get("teacher"), task=bench.task)
    rounds = method.rounds_an_epoch() or composition.source["rounds"]
    return method.student_updates(rounds * composition.trainer["max_epochs"])
