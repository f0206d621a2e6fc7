"""Reports what a command would make and what that would cost (``plan=true``), without making it.

The code of a run is called with a temporary store. Fits get the same keys as in a run, because the same code computes
them; stored fits are read, and a few rounds of each missing fit are run and timed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tabulate import tabulate

from kd_lightning.config.composition import Composition
from kd_lightning.config.node import thaw
from kd_lightning.core.inference import predict
from kd_lightning.core.tasks import kept
from kd_lightning.data.load import dataset_digest
from kd_lightning.engine.data import load_data
from kd_lightning.engine.fit import FitResult, RunContext
from kd_lightning.planning.dry_run import KEPT, MISSING, PROMISED, ROUNDS, Planner, Step
from kd_lightning.planning.dry_run_store import Overlay, now_on_device
from kd_lightning.run.first_pass import first_pass
from kd_lightning.run.run import identity, settle
from kd_lightning.run.stages_and_controls import control_of, handed
from kd_lightning.run.teacher import TeacherHandle, obtain_source_teacher, obtain_teacher
from kd_lightning.store.artifacts import Store
from kd_lightning.store.files import in_words, size_of
from kd_lightning.teachers.remote.client import LedgerClient
from kd_lightning.teachers.remote.dry_run import Planned
from kd_lightning.tracking.backends import Dashboards

NOTHING = "–"


@dataclass
class Plan:
    """The steps of a run, in order, and notes on them."""

    title: str
    steps: list[Step]
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Total remaining time."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def size(self) -> int:
        """Bytes that will be written."""
        return sum(step.size for step in self.steps if step.state not in (KEPT, PROMISED))


def plan(composition: Composition, promised: set[str] | None = None) -> Plan:
    """Work out what a run of this composition would make.

    Args:
        composition: as :func:`~kd_lightning.run.run.run` takes it.
        promised: names of the folders that earlier jobs of a sweep will have made; this run's are added.

    Raises:
        UserError: an error that the run would raise, as far as it can be foreseen.
    """
    composition = settle(composition, planning=True)
    names = composition.names
    kept = Store(**thaw(composition.artifacts))
    with tempfile.TemporaryDirectory(prefix="kd_plan_") as place:
        store = Overlay(kept, Path(place))
        dataset = load_data(composition.data, store, composition.source)
        key = dataset_digest(dataset)
        run = store.path("run", identity(composition, key))
        stored = (run / "artifact.json").is_file()
        if composition.teacher is not None:  # after a few rounds a teacher is near chance
            composition = composition.derive(teacher=replace(composition.teacher, check=False))
        first_pass(composition, dataset)
        bench = RunContext(store, dataset, key, dataset.task, Dashboards(), run=run.name)
        planner = Planner(kept, bench, set() if promised is None else promised)
        title = f"plan of {names.get('method')} on {names.get('data')}, seed {composition.seed}"
        made = Plan(title, planner.steps)
        _walk(composition, planner, made)
        if stored:
            made.notes.append("this composition was run before: its stored result would be printed again")
            for step in made.steps:
                step.state, step.seconds, step.images = KEPT, None, 0
    _say_what_it_rests_on(made, composition, kept)
    return made


def _walk(composition: Composition, planner: Planner, made: Plan) -> None:
    """Call the planner for every fit of a run, in the order of ``run.py``, and add notes and further steps."""
    bench, steps = planner.bench, planner.steps
    teacher = obtain_teacher(composition, bench, planner.fit)
    if teacher is not None and not steps:
        steps.append(Step("teacher", "read from its file" if teacher.net else "somewhere else"))
    if teacher is not None and isinstance(teacher.door, LedgerClient):
        planner.door = Planned(teacher.door, planner.promised)
        unlimited = replace(teacher.settings, budget=None)  # queries of a plan cost nothing
        teacher = replace(teacher, door=planner.door, settings=unlimited)
    stages: dict[str, FitResult] = {}
    for name in composition.stages:
        stage = composition.stages[name]
        asked = obtain_source_teacher(stage, composition, bench, planner.fit)
        given = handed(teacher, asks=stage.asks, taught_by=stages.get(stage.taught_by or ""), source_teacher=asked)
        stages[name] = planner.fit(stage, bench, phase=name, **given)
        composition = composition.after(name, stages[name].folder)
    asked = obtain_source_teacher(composition, composition, bench, planner.fit)
    given = handed(teacher, taught_by=stages.get(composition.taught_by or ""), source_teacher=asked)
    student = planner.fit(composition, bench, phase="student", **given)
    fits = [*stages.values(), student]
    white = teacher is None or teacher.white
    images = planner.door.in_all() if planner.door else sum(f.report["teacher_images"] for f in fits)
    budget = composition.teacher.budget if composition.teacher else None
    if not white and budget is not None:
        enough = "" if images <= budget else ": NOT ENOUGH, the run would stop there"
        made.notes.append(f"teacher.budget={budget:,} images, this run's fits ask about {images:,}{enough}")
    networks = 1
    for name, control in composition.controls.items():
        own = control_of(control, bench.dataset, teacher, student.report["student_updates"])
        if own is not None:
            asked = obtain_source_teacher(own, composition, bench, planner.fit)
            taught_by = stages.get(own.taught_by or "")
            planner.fit(
                own, bench, phase=name, **handed(teacher, asks=own.asks, taught_by=taught_by, source_teacher=asked)
            )
            networks += 1
    _measure(planner, composition, teacher, student, networks)
    if planner.door is not None:
        made.notes.append(_cost(planner.door, sum(step.images for step in steps)))
    files = [f.folder / name for f in fits for name in ("last.ckpt", "metrics.csv", "samples")]
    size = sum(size_of(file) if file.is_dir() else file.stat().st_size for file in files if file.exists())
    size += sum(file.stat().st_size for f in fits for file in f.folder.glob("*.safetensors"))
    steps.append(Step("result", MISSING, size=2 * size))  # in the store and in the run's folder


def _measure(
    planner: Planner, composition: Composition, teacher: TeacherHandle | None, student: FitResult, networks: int
) -> None:
    """Add the step of testing the networks, with the queries to a black-box teacher that ``eval_budget`` allows."""
    dataset, step = planner.bench.dataset, Step("test", MISSING, seconds=0.0)
    if planner.door is not None and teacher is not None and teacher.reference is None:
        left = teacher.settings.eval_budget
        for split in (dataset.test, dataset.val):
            if split is not None and (needed := planner.door.needed(split.images)) <= left:
                left -= needed
                step.images += planner.door.look(split.images)
    if dataset.test is not None:
        images, start = dataset.test.images[:500], now_on_device()
        predict(student.network, images, keep=kept(planner.bench.task), device=composition.device)
        step.seconds = (now_on_device() - start) * len(dataset.test) / len(images) * (networks + (teacher is not None))
    planner.steps.append(step)


def _cost(door: Planned, images: int) -> str:
    teacher, price = door.described, door.described.price
    cost = f", which costs {images * price:.2f} at {price:g} each" if price else ""
    return f"{teacher.name}: {images:,} images to ask about{cost}; {len(door.paid):,} are paid for already"


def _say_what_it_rests_on(made: Plan, composition: Composition, kept: Store) -> None:
    device = torch.cuda.get_device_name() if composition.device != "cpu" else f"cpu x{torch.get_num_threads()}"
    made.notes.append(f"seconds: from up to {ROUNDS} rounds of each fit that is not kept, one process, {device}")
    if any(step.name == "teacher" and step.state != KEPT and step.rounds for step in made.steps):
        made.notes.append("the teacher is not there yet: what depends on it was timed with one that knows nothing")
    fits = set(composition.stages)
    chosen = "per_label" in composition.source  # of a pool that is subsampled and filtered
    if (
        chosen
        and any(step.name.endswith("'s pool") and step.state == MISSING for step in made.steps)
        and any(step.name in fits and step.state != KEPT for step in made.steps)
    ):
        made.notes.append("the generator is not there yet: how many of its images will be taken is a guess")
    free = shutil.disk_usage(next(folder for folder in (kept.root, *kept.root.parents) if folder.exists())).free
    made.notes.append(f"kept work: {kept.root} holds {in_words(size_of(kept.root))}, {in_words(free)} are free there")
    if made.size > free:
        made.notes.append("NOT ENOUGH space: kd-artifacts gc frees some, artifacts.root=DIR is another place")
    made.notes.append("nothing was kept or written; the same command without plan=true does it")


def render(made: Plan) -> str:
    """A plan as a table for a terminal."""
    rows = [
        [
            step.name,
            step.state,
            f"{step.rounds:,}" if step.rounds else NOTHING,
            NOTHING if step.seconds is None or step.state == KEPT else f"{step.seconds:.1f}",
            in_words(step.size) if step.size else NOTHING,
            f"{step.images:,}" if step.images else NOTHING,
        ]
        for step in made.steps
    ]
    images = sum(step.images for step in made.steps)
    rows.append(["total", "", "", f"{made.seconds:.1f}", in_words(made.size), f"{images:,}" if images else NOTHING])
    headers = ["", "", "rounds", "seconds", "disk", "teacher's images"]
    aligned = ["left", "left", "right", "right", "right", "right"]
    table = tabulate(rows, headers, tablefmt="simple", colalign=aligned, disable_numparse=True)
    total = f"about {duration(made.seconds)} and {in_words(made.size)} to go" if made.seconds else "nothing to do"
    return "\n".join([f"{made.title}: {total}", "", table, "", *made.notes]) + "\n"


def altogether(each: Sequence[tuple[float, int]]) -> str:
    """One line with the total seconds and bytes of several jobs."""
    seconds, size = (sum(values) for values in zip(*each, strict=True))
    return f"all {len(each)} jobs, one after the other: about {duration(seconds)} and {in_words(size)}\n"


def duration(seconds: float) -> str:
    """Seconds in words: ``50 seconds``, ``12 minutes``, ``3.5 hours``."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"
