"""A plan names the very fits that the run makes, times the missing ones, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import DAFL, PATIENCE, TINY, composition, tiny_run
from test_stages import TINY_RDSKD

from kd_lightning.core.log_filters import quiet
from kd_lightning.errors import BudgetExceeded
from kd_lightning.planning.plan import Plan, altogether, duration, plan, render

ZSKD = ("method=zskd", "source.images=24", "source.impressions=8", "source.steps=30", "source.batch_size=4")


def planned(*overrides: str, promised: set[str] | None = None) -> Plan:
    quiet()
    own = DAFL if overrides[0] == "method=dafl" else ()
    names = {"data": "digits"} | dict(o.split("=", 1) for o in overrides if "." not in o)
    return plan(composition(*TINY, *own, *overrides, names=names), promised)


def states(made: Plan) -> dict[str, str]:
    return {step.name: step.state for step in made.steps}


def kept(store: Path, kind: str) -> set[str]:
    return {path.parent.name for path in store.glob(f"{kind}-*/artifact.json")}


@pytest.mark.slow
def test_the_fits_of_the_plan_are_those_of_the_run(tmp_path: Path, store: Path) -> None:
    overrides, promised = (*TINY_RDSKD, "controls=digits"), set[str]()
    made = planned(*overrides, promised=promised)
    phases = ["teacher", "generator", "student", "scratch", "noise"]
    assert states(made) == dict.fromkeys([*phases, "test", "result"], "to be made")
    assert not store.exists()
    assert made.seconds > 0
    assert made.size > 10_000

    result = tiny_run(tmp_path / "run", *overrides)
    assert kept(store, "fit") == promised
    rounds = {step.name: step.rounds for step in made.steps}
    assert rounds | {"generator": 3, "student": 8} == rounds
    asked = {step.name: step.images for step in made.steps}
    assert asked["generator"] + asked["student"] == result["cost"]["teacher_images"]

    again = planned(*overrides)
    assert set(states(again).values()) == {"kept"}
    assert again.seconds == again.size == 0
    assert "nothing to do" in render(again)
    other = planned(*overrides, "seed=1")
    assert states(other) == dict.fromkeys(phases, "kept") | dict.fromkeys(
        ["generator", "student", "scratch", "noise", "test", "result"], "to be made"
    )


@pytest.mark.slow
def test_a_pool_is_planned_from_a_little_of_it(tmp_path: Path, store: Path, teacher_file: Path) -> None:
    overrides, promised = (*ZSKD, f"teacher.weights={teacher_file}"), set[str]()
    made = planned(*overrides, promised=promised)
    steps = {step.name: step for step in made.steps}
    assert steps["teacher"].state == "read from its file"
    assert steps["student's pool"].images == 24 * 31
    assert steps["student's pool"].seconds > 0
    assert steps["student"].rounds == 2 * 6
    result = tiny_run(tmp_path / "run", *overrides)
    assert kept(store, "fit") | kept(store, "pool") == promised
    assert result["cost"]["teacher_images"] == 24 * 31 + steps["student"].images
    assert "student's pool" not in states(planned(*overrides, "seed=1"))


def test_a_budget_that_is_too_small_is_said_before_anything_is_asked(
    tmp_path: Path, store: Path, teacher_file: Path
) -> None:
    overrides = ("method=kd", "source=queried", "teacher.access=label", "method.label=0.0",
                 f"teacher.weights={teacher_file}", "source.images=600", "teacher.eval_budget=400")  # fmt: skip
    made = planned(*overrides, "teacher.budget=599")
    steps = {step.name: step.images for step in made.steps}
    assert steps == {"teacher": 0, "student's answers": 600, "student": 0, "test": 359, "result": 0}
    assert any("NOT ENOUGH" in note and "600" in note for note in made.notes)
    with pytest.raises(BudgetExceeded):
        tiny_run(tmp_path / "run", *overrides, "teacher.budget=599")
    enough = planned(*overrides, "teacher.budget=600")
    assert not any("NOT ENOUGH" in note for note in enough.notes)
    tiny_run(tmp_path / "run", *overrides, "teacher.budget=600")
    bought = planned(*overrides, "teacher.budget=600", "seed=1")
    assert sum(step.images for step in bought.steps) == 0


@pytest.mark.slow
def test_an_interrupted_fit_is_counted_from_where_it_stopped(
    tmp_path: Path, store: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd_lightning.engine import fit as fitting

    save, overrides = fitting.Resumable._save, ("method=dafl", f"teacher.weights={teacher_file}")

    def once(self: Any, trainer: Any) -> None:
        save(self, trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setenv("KD_CHECKPOINT_SECONDS", "0")
        patch.setattr(fitting.Resumable, "_save", once)
        with pytest.raises(KeyboardInterrupt):
            tiny_run(tmp_path / "run", *overrides)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    made = planned(*overrides)
    assert states(made)["student"] == "begun, 1 rounds done"
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before
    anew = planned(*overrides, "artifacts.reuse=false")
    assert states(anew)["student"] == "to be made"


@pytest.mark.slow
def test_a_sweep_is_planned_job_by_job_without_a_trace(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kd_lightning.cli.main", "-m", "plan=true", "method=dafl", *TINY, *DAFL,
               "seed=0,1", "hydra.sweep.dir=out"]  # fmt: skip
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"KD_ARTIFACTS": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == []
    first, second = (part for part in run.stdout.split("plan of dafl") if part)
    assert "made by an earlier job" not in first
    rows = {line.split()[0]: line for line in second.splitlines() if line}
    assert "made by an earlier job" in rows["teacher"]
    assert "to be made" in rows["student"]
    assert run.stdout.splitlines()[-1].startswith("all 2 jobs, one after the other: about")


def test_durations_and_totals_in_words() -> None:
    assert [duration(s) for s in (0.2, 50, 119, 300, 3599, 7200, 86400 * 30)] == [
        *("1 seconds", "50 seconds", "119 seconds", "5.0 minutes", "60 minutes", "2.0 hours", "30 days")
    ]
    assert altogether([(60.0, 1000), (60.0, 2000)]) == "all 2 jobs, one after the other: about 2.0 minutes and 3.0 kB\n"
