"""FS-BBT and what it is compared with, from the command's settings to the result: what each asks, and what is kept."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, composed, tiny_run
from safetensors.torch import load_file
from test_plan import planned, states
from torch import nn

from kd_lightning.config.check import check, faults
from kd_lightning.config.overrides import read
from kd_lightning.core.schedules import piecewise
from kd_lightning.errors import BudgetExceeded

SMALL = (
    "experiment=fs_bbt/digits",
    "source.per_class=3",
    "source.synthetic=70",
    "source.batch_size=20",
    "teacher.budget=100",
)
CVAE = ("fs_bbt.trainer.max_epochs=3", "fs_bbt.source.batch_size=20", "fs_bbt.method.generator.widths=[16,8]")


def plans(store: Path) -> set[str]:
    reports = (json.loads(file.read_text()) for file in store.glob("fit-*/fit.json"))
    return {report["plan"] for report in reports if report["phase"] == "student" and "plan" in report}


def answered(store: Path) -> int:
    """Images that the ledger holds an answer to."""
    with closing(sqlite3.connect(store / "ledger.sqlite")) as db:
        return db.execute("SELECT COUNT(*) FROM answers").fetchone()[0]


@pytest.mark.slow
def test_every_row_of_the_table_asks_about_what_it_may(tmp_path: Path, store: Path, teacher_file: Path) -> None:
    def run(method: str, *overrides: str) -> Any:
        own = CVAE if method == "fs_bbt" else ()
        folder = tmp_path / "_".join([method, *overrides]).replace("/", "")
        return tiny_run(folder, f"method={method}", *SMALL, *own, f"teacher.weights={teacher_file}", *overrides)

    asked = {"supervised": 0, "kd": 30, "fs_bbt_mixup": 99, "fs_bbt": 100}  # two of the mixes are the same image
    results = {method: run(method) for method in asked}
    assert {method: result["cost"]["queries"] for method, result in results.items()} == asked
    kept, paid = {path.parent.name for path in store.glob("pool-*/artifact.json")}, answered(store)
    assert len(kept) == 2
    assert paid == 99 + 7, "the few are shared by all, and the mixes that stay by both: only the CVAE's are new"
    assert results["fs_bbt"]["cost"]["images_synthesised"] == 70
    assert results["fs_bbt"]["metrics"]["teacher/accuracy"] is None

    other = run("fs_bbt", "seed=1", "student.widths=[4,8]")
    assert not other["stored"]
    assert {path.parent.name for path in store.glob("pool-*/artifact.json")} == kept
    assert answered(store) == paid, "nothing is paid anew"
    assert len(plans(store)) == 3  # the few alone, and the two pools
    with pytest.raises(BudgetExceeded, match="budget=99"):
        run("fs_bbt", "seed=2", "teacher.budget=99")
    labels = run("fs_bbt", "teacher.access=label")
    assert labels["cost"]["queries"] == 100
    (grid,) = (tmp_path / "fs_bbt" / "samples").glob("generated_0002.png")
    assert grid.stat().st_size > 1000


@pytest.mark.slow
def test_as_many_steps_for_every_row(tiny: Callable[..., Any], store: Path, teacher_file: Path) -> None:
    for method in ("supervised", "kd", "fs_bbt_mixup"):
        tiny(f"method={method}", *SMALL, f"teacher.weights={teacher_file}")
    reports = [json.loads(file.read_text()) for file in store.glob("fit-*/fit.json")]
    assert {report["rounds"] for report in reports if report["phase"] == "student"} == {2 * 5}


@pytest.mark.slow
def test_active_mixup_asks_in_rounds(tiny: Callable[..., Any], store: Path, teacher_file: Path) -> None:
    overrides = ("method=active_mixup", *SMALL, "source.expand.candidates=60", f"teacher.weights={teacher_file}")
    result = tiny(*overrides)
    assert result["cost"]["queries"] == 100
    assert set(result["cost"]["seconds"]) >= {"first", "second", "third", "student"}
    assert len(list(store.glob("pool-*/artifact.json"))) == 3
    again = tiny(*overrides, "seed=1")
    assert again["cost"]["queries"] == 100
    assert len(list(store.glob("pool-*/artifact.json"))) == 3
    assert answered(store) == 100


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fs_bbt", "active_mixup"])
def test_the_plan_knows_rounds_and_questions(method: str, tmp_path: Path, store: Path, teacher_file: Path) -> None:
    own = CVAE if method == "fs_bbt" else ("source.expand.candidates=60",)
    overrides = (f"method={method}", *SMALL, *own, f"teacher.weights={teacher_file}")
    promised = set[str]()
    made = planned(*overrides, promised=promised)
    assert sum(step.images for step in made.steps) == 100
    assert any("this run's fits ask about 100" in note and "NOT ENOUGH" not in note for note in made.notes)
    rounds = {step.name: step.rounds for step in made.steps if step.rounds}
    second = planned(*overrides, "seed=1", promised=promised)
    assert sum(step.images for step in second.steps) == 0
    assert states(second)["student"] == "to be made"
    assert not store.exists()
    tiny_run(tmp_path / "run", *overrides)
    reports = [json.loads(file.read_text()) for file in store.glob("fit-*/fit.json")]
    assert {report["phase"]: report["rounds"] for report in reports} == rounds
    assert set(states(planned(*overrides)).values()) == {"kept"}


@pytest.mark.slow
def test_the_cvae_is_the_same_whatever_student_and_seed_follow(
    tiny: Callable[..., Any], store: Path, teacher_file: Path
) -> None:
    for own in (("seed=0",), ("seed=1", "student=small_conv", "init=null")):
        tiny("method=fs_bbt", *SMALL, *CVAE, f"teacher.weights={teacher_file}", *own)
    (decoder,) = store.glob("fit-*/generator.safetensors")
    assert set(load_file(decoder)) == {f"body.{k}" for k in ("0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias",
                                                             "1.weight", "1.bias")}  # fmt: skip


@pytest.mark.slow
def test_the_same_few_images_for_every_method() -> None:
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "digits"):
        rows = [composed(f"experiment=fs_bbt/{name}", f"method={m}") for m in ("kd", "supervised", "fs_bbt")]
        shared = [(cfg.source.per_class, cfg.source.seed, cfg.source.synthetic, cfg.trainer.max_epochs) for cfg in rows]
        assert len(set(shared)) == 1
        cfg = rows[2]
        assert cfg.teacher.budget == cfg.source.per_class * cfg.data.num_classes + cfg.source.synthetic
        assert (rows[0].method.label, rows[0].method.terms.response.weight) == (0.1, 0.9)
        assert rows[0].method.terms.response.loss.temperature == 1
        assert len({str(row.method.optimizer) + str(row.method.scheduler) for row in rows}) == 1
        size = cfg.fs_bbt.method.generator.size
        assert size == cfg.fs_bbt.method.encoder.size == cfg.data.size
    assert composed("experiment=fs_bbt/mnist_paper_code").source.mixup_again is True


def test_a_stage_that_is_not_there_is_named() -> None:
    cfg, _, _ = read([*TINY, "method=fs_bbt", "source.expand.weights=stage:vae/generator.safetensors"])
    assert [line for line in faults(cfg) if "stage vae" in line] == [
        "source.expand.weights=stage:vae/generator.safetensors: there is no stage vae; did you mean cvae?"
    ]
    check(composed("method=active_mixup"))


def test_a_learning_rate_in_pieces() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    schedule = piecewise(optimizer, epochs=[2, 4], factors=[0.1, 0.05])
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.005, 0.005])
