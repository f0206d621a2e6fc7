"""One run: data, teacher, stages, student, controls, test, result."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kd_lightning.config import ranks
from kd_lightning.config.composition import Composition, Training
from kd_lightning.config.node import Node, freeze, thaw
from kd_lightning.config.record import leave_plain
from kd_lightning.config.signatures import own_code, versions
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.notices import keep, notice, noticing
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.image_files import counted
from kd_lightning.data.load import dataset_digest
from kd_lightning.distributed import collectives, decisions
from kd_lightning.distributed.beside import Beside
from kd_lightning.distributed.device import fast_precision
from kd_lightning.engine.data import load_data
from kd_lightning.engine.fit import FitResult, RunContext, fit
from kd_lightning.results.provenance import header_of, leave_reason
from kd_lightning.results.stored import copied, result_in, said_again
from kd_lightning.run.first_pass import first_pass
from kd_lightning.run.measured import Fits, tested, trained
from kd_lightning.run.result import card_of, keep_files, result_of
from kd_lightning.run.stages_and_controls import control_of, handed, weak_teacher
from kd_lightning.run.teacher import obtain_source_teacher, obtain_teacher
from kd_lightning.store.artifacts import Store
from kd_lightning.store.files import file_digest, names_file, write_json
from kd_lightning.tracking.backends import watching
from kd_lightning.tracking.curve_picture import draw_curves

VERSION = 2
"""Increased when the identity of a run changes."""
PARTS = {Segmentation: "iou", MultiLabel: "average_precision"}
"""Name in the result of what is measured of each class."""


def run(composition: Composition, folder: Path, beside: Beside | None = None) -> dict[str, Any]:
    """Run a composition and write its result to ``folder``.

    Args:
        composition: as :func:`~kd_lightning.config.check.check` returns it.
        folder: the run folder; gets ``result.json`` whatever happens.
        beside: the process that trains controls meanwhile, not yet begun.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: an error that the user can fix; ``result.json`` holds ``failed`` and the reason.
        KeyboardInterrupt: the user stopped it; the same command resumes it.
    """
    try:
        result = _kept_or_made(settle(composition), folder, beside)
    except BaseException as error:
        status, reason = "failed", str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            status, reason = "stopped", "interrupted; the same command goes on from the last checkpoint"
        if collectives.rank() == 0:
            leave_reason(folder, header_of(composition), status, reason)
        raise
    if collectives.rank() == 0:
        write_json(folder / "result.json", result)
    return result


def settle(composition: Composition, *, planning: bool = False) -> Composition:
    """Fill in the settings that depend on the machine: the ranks, and every ``auto``.

    Args:
        composition: as composed.
        planning: assume the ranks that it asks for, whether or not they were started.

    Raises:
        ConfigError: it asks for other ranks than were started.
    """

    def settled(training: Training) -> Training:
        trainer = ranks.settle(training.trainer.settings, planning=planning)
        if trainer.get("precision") == "auto":
            trainer["precision"] = decisions.decided(lambda: fast_precision(trainer["accelerator"]))
        return training.derive(trainer=Node(training.trainer.target, freeze(trainer)))

    return composition.everywhere(settled)


def identity(composition: Composition, data_key: str) -> dict[str, Any]:
    """Everything that determines a run's result, as plain data; its digest is the run's key."""
    own = {k: v for k, v in composition.plain().items() if k != "artifacts"}
    if own["teacher"]:
        own["teacher"] = {k: v for k, v in own["teacher"].items() if k not in ("ledger", "total_budget", "pace")}
    files = [file_digest(file) for file in _files(own)]
    theirs = own_code({key: value for key, value in own.items() if key not in ("data", "logger")})
    made_by = [VERSION, version("kd_lightning"), versions(own), *([theirs] if theirs else [])]
    return {**own, "data": data_key, "files": files, "version": made_by}


def _files(node: Any) -> Iterator[str]:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _files(value)
    if names_file(node):
        yield node
    elif isinstance(node, str) and "/" in node:  # a run folder, whose student is read
        yield from filter(names_file, (f"{node}/student.safetensors", f"{node}/student.json"))


def _kept_or_made(composition: Composition, folder: Path, beside: Beside | None) -> dict[str, Any]:
    decisions.decided(lambda: leave_plain(composition.record, folder))
    store = Store(**thaw(composition.artifacts), decided=decisions.decided)
    clock = Clock()

    # Data
    with clock("data"):
        dataset = load_data(composition.data, store, composition.source)
        data_key = dataset_digest(dataset)
    if dataset.found and collectives.rank() == 0:
        print(dataset.found, file=sys.stderr, flush=True)

    # Run, unless the store holds the result of the same run
    made_of = identity(composition, data_key)
    name = store.path("run", made_of).name
    loggers = [logger.build for logger in composition.logger.values()]

    def build(work: Path) -> None:
        with watching(loggers, composition.plain(), work, folder) as boards:
            bench = RunContext(store, dataset, data_key, dataset.task, boards, run=name, folder=folder)
            with noticing() as heard:
                result = _produce(composition, bench, clock, work, beside)
            result["warnings"] = list(dict.fromkeys([*result["warnings"], *heard]))
        decisions.decided(lambda: write_json(work / "result.json", result))

    kept = store.obtain("run", made_of, build, everywhere=True, students=True)

    # Copy to the run folder
    decisions.decided(lambda: copied(kept, folder))
    result = result_in(kept) | {"run_kept": name, "stored": kept not in store.built}
    if result["stored"] and collectives.rank() == 0:
        said_again(kept)
    return result


def _produce(
    composition: Composition, bench: RunContext, clock: Clock, work: Path, beside: Beside | None
) -> dict[str, Any]:
    dataset = bench.dataset
    first_pass(composition, dataset)
    _notice_data(dataset)
    if beside is not None:
        beside.begin()
        bench.store.waiting = beside.waiting

    # Teacher; test images are asked before validation images: a small eval_budget goes to the result, not to the curve
    teacher = obtain_teacher(composition, bench)
    answers = teacher.answers(dataset.test, bench.task) if teacher else None

    # Stages before the student, whose files later trainings refer to
    stages: dict[str, FitResult] = {}
    for name in composition.stages:
        stage = composition.stages[name]
        asked = obtain_source_teacher(stage, composition, bench)
        given = handed(teacher, asks=stage.asks, taught_by=stages.get(stage.taught_by or ""), source_teacher=asked)
        stages[name] = fit(stage, bench, phase=name, watched=True, **given)
        composition = composition.after(name, stages[name].folder)

    # Student
    val_answers = teacher.answers(dataset.val, bench.task) if teacher else None
    asked = obtain_source_teacher(composition, composition, bench)
    given = handed(teacher, taught_by=stages.get(composition.taught_by or ""), source_teacher=asked)
    student = fit(composition, bench, phase="student", val_answers=val_answers, watched=True, **given)

    # Controls to compare the student with; from the last, because a process beside this one trains them from the first
    if beside is not None:
        beside.tell()
    controls: dict[str, FitResult | None] = dict.fromkeys(composition.controls)
    for name, control in reversed([*composition.controls.items()]) if trained(student) else ():
        own = control_of(control, dataset, teacher, student.report["student_updates"])
        if own is not None:
            its = obtain_source_teacher(own, composition, bench)
            given = handed(teacher, asks=own.asks, taught_by=stages.get(own.taught_by or ""), source_teacher=its)
            controls[name] = fit(own, bench, phase=name, **given)

    # Test
    fits = Fits(teacher, asked, answers, stages, student, controls)
    with clock("test"):
        metrics, parts = tested(composition, bench, fits, work)
    if collectives.rank() == 0 and (weak := weak_teacher(composition.controls, metrics, bench.task)):
        notice(weak)
    bench.boards.numbers({k: v for k, v in metrics.items() if v is not None}, student.report["rounds"])

    # Student's files and result
    card = card_of(composition, dataset, metrics, teacher)
    decisions.decided(lambda: keep_files(stages, student, card, work))
    if collectives.rank() == 0:
        title = f"{composition.names.get('method') or 'a student'} on {dataset.name}, seed {composition.seed}"
        draw_curves(work / "metrics.csv", work / "curves.png", title)
    if trained(student):
        bench.boards.student(work, card)
    return result_of(composition, bench, fits, metrics, clock.seconds) | (
        {PARTS[type(bench.task)]: parts} if parts else {}
    )


def _notice_data(dataset: Dataset) -> None:
    """Keep what is missing of the data, or may be misread, with the result."""
    for doubt in dataset.doubts:
        notice(doubt)
    if dataset.unread:
        keep(f"files of kinds that are not read were left out: {counted(dataset.unread)}; convert them to .png or .jpg")
    if dataset.skipped:
        keep(f"{dataset.skipped:,} files that cannot be decoded were left out (data.skip_bad=true)")
    if dataset.test is not None and not dataset.test.labelled:
        keep(f"the test images of data={dataset.name} have no labels: only agreement with the teacher is measured")
    if dataset.test is None:
        keep(f"data={dataset.name} has no test images, so nothing is measured on them: add a folder test")


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Record the seconds of a ``with`` block."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start
