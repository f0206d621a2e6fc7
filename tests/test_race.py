"""A race of methods, in slices that go on from the checkpoint of the one before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATIENCE, TINY
from safetensors.torch import load_file

from kd_lightning.distributed.gpu_slots import Job
from kd_lightning.engine.slices import SLICES
from kd_lightning.errors import ConfigError, UserError
from kd_lightning.planning.race import Runner, drawn, entrants, race, rungs, seconds_each, tell

AMONG = [["method=dafl"], ["method=zskt"], ["method=dfad"], ["method=rdskd"]]


class Told:
    """A launcher whose jobs reach the scores that they were told to, a round a second."""

    def __init__(self, scores: Sequence[float | None], ends: Sequence[int] = (), slots: int = 1) -> None:
        self.slots = [""] * slots
        self.scores, self.ends = scores, ends
        self.given: list[tuple[list[int], float]] = []

    def begin(self, folder: Path) -> None:
        folder.mkdir(parents=True)

    def slice(self, jobs: Sequence[Job], seconds: float) -> None:
        self.given.append(([job.number for job in jobs], seconds))
        for job in jobs:
            job.folder.mkdir(exist_ok=True)
            score = self.scores[job.number]
            if score is None:
                failed = {"format_version": 1, "status": "failed", "reason": "no such file"}
                (job.folder / "result.json").write_text(json.dumps(failed))
                (job.folder / ".hydra").mkdir(exist_ok=True)
                (job.folder / ".hydra" / "overrides.yaml").write_text("[]")
                continue
            file = job.folder / SLICES
            said = json.loads(file.read_text()) if file.is_file() else []
            slice_ = {"round": len(said) + 1, "seconds": seconds, "score": score, "higher_is_better": True}
            said.append(slice_ | {"judged_by": "accuracy on validation images", "ended": job.number in self.ends})
            file.write_text(json.dumps(said))


def raced(launcher: Told, seconds: float = 240) -> list[Runner]:
    folder = Path("race").absolute()
    runners = [Runner(words, Job(i, words, folder / str(i), words[0])) for i, words in enumerate(AMONG)]
    return race(launcher, runners, seconds=seconds, folder=folder)


def test_slices_fill_the_time() -> None:
    assert [rungs(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 1, 2, 2, 3, 3, 4]
    assert seconds_each(1200, 3, 8, slots=2) == 100
    assert seconds_each(1200, 3, 7, slots=2) == 100, "the last one has a slot for itself"
    assert seconds_each(60, 1, 1, slots=4) == 60
    launcher = Told([0.1, 0.2, 0.3, 0.4])
    raced(launcher)
    (_, brings_teachers), *rest = launcher.given
    assert brings_teachers == 0
    assert sum(len(numbers) * seconds for numbers, seconds in rest) == 240


def test_the_better_half_goes_on_and_the_best_wins(capsys: Any) -> None:
    launcher = Told([0.5, 0.9, 0.7, 0.1])
    order = raced(launcher)
    assert [runner.name for runner in order] == ["method=zskt", "method=dfad", "method=dafl", "method=rdskd"]
    assert [numbers for numbers, _ in launcher.given] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2]]
    tell(order, ["problem=digits"], Path("race"))
    printed = capsys.readouterr().out
    assert "go on with the winner: kd-lightning problem=digits method=zskt" in printed
    assert (Path("race") / "race.md").read_text() in printed
    assert (Path("race") / "race.png").is_file()


def test_what_fails_leaves_and_what_has_ended_takes_no_more_time() -> None:
    launcher = Told([None, 0.9, 0.7, 0.1], ends=[1])
    order = raced(launcher)
    assert [numbers for numbers, _ in launcher.given] == [[0, 1, 2, 3], [0, 1, 2, 3], [2]]
    assert order[0].name == "method=zskt"
    assert order[-1].left == "failed: no such file"


def test_where_all_have_ended_the_best_wins_however_early() -> None:
    launcher = Told([0.9, 0.8, 0.1, 0.2], ends=[0, 1])
    order = raced(launcher)
    assert [numbers for numbers, _ in launcher.given] == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert [runner.name for runner in order[:2]] == ["method=dafl", "method=zskt"]


def test_none_trains() -> None:
    with pytest.raises(UserError, match=r"none has trained a student; see console\.log"):
        raced(Told([None] * 4))


def test_too_little_time() -> None:
    with pytest.raises(
        ConfigError, match=r"sweep\.minutes=0\.1: 4 methods would get 0\.8 seconds each at first; give "
    ):
        raced(Told([]), seconds=6)
    raced(Told([0.1] * 4), seconds=60 * 0.7)


def test_a_method_that_is_chosen_already() -> None:
    with pytest.raises(ConfigError, match=r"method=dafl: sweep=race chooses it; say what competes by sweep\.among"):
        entrants(["method=dafl"], AMONG, Path("race"))


@pytest.mark.slow
def test_who_competes(capsys: Any) -> None:
    among = [["method=dfq"], ["method=dafl", "method.latent=8"], ["method=zskt"]]
    runner, other = entrants(["controls=baselines"], among, Path("race"))
    assert [(each.name, each.job.number) for each in (runner, other)] == [("method=dafl", 0), ("method=zskt", 1)]
    assert runner.job.overrides == ["method=dafl", "method.latent=8", "controls=none"]
    assert "left out, method=dfq: method: Dfq reads the teacher's batch-norm statistics" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"of sweep\.among none can run with these settings"):
        entrants([], [["method=dfq"]], Path("race"))
    with pytest.raises(ConfigError, match=r"of sweep\.among only method=dafl can run with these settings"):
        entrants([], [["method=dfq"], ["method=dafl"]], Path("race"))


def test_the_picture_has_a_line_for_each() -> None:
    order = raced(Told([0.5, 0.9, 0.7, 0.1]))
    page = drawn(order)
    assert page is not None
    (axes,) = page.axes
    assert [line.get_label() for line in axes.lines] == [runner.name for runner in order]
    assert list(axes.lines[0].get_xdata()) == [30, 90]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_fit_in_slices_is_the_same_as_one_without(
    tiny: Callable[..., Any], teacher_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = ("method=dafl", f"teacher.weights={teacher_file}", "trainer.max_epochs=3")
    whole = tiny(*settings)
    monkeypatch.setenv("KD_SLICE", "0")
    monkeypatch.setenv("KD_ARTIFACTS", str(tmp_path / "others"))
    said: list[Any] = []
    for _ in range(50):
        try:
            result = tiny(*settings, f"artifacts.root={tmp_path / 'others'}")
        except KeyboardInterrupt:
            continue
        break
    said = json.loads((result.folder / SLICES).read_text())
    assert said[-1]["ended"]
    assert said[-1]["judged_by"] == "accuracy on validation images"
    a, b = (load_file(folder / "student.safetensors") for folder in (whole.folder, result.folder))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_race_on_digits_goes_on_from_slice_to_slice(tmp_path: Path) -> None:
    words = [
        *TINY,
        "sweep=race",
        'sweep.among=["method=dafl","method=dfad","method=zskt","method=nothing"]',
        "sweep.minutes=0.6",
    ]
    command = [
        sys.executable,
        "-m",
        "kd_lightning.cli.main",
        *words,
        "hydra.sweep.dir=race",
        "trainer.max_epochs=100000",
    ]
    own = {"KD_ARTIFACTS": str(tmp_path / "artifacts"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **own})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out, method=nothing: method=nothing: there is no method called nothing" in done.stderr
    said = [json.loads((tmp_path / "race" / n / SLICES).read_text()) for n in "012"]
    assert sorted(len(each) for each in said) == [1, 2, 2]
    assert "go on with the winner: kd-lightning" in done.stdout
    assert "Warning" not in (tmp_path / "race" / "0" / "console.log").read_text()
    for each in said:
        rounds = [slice_["round"] for slice_ in each]
        assert rounds == sorted(set(rounds)), "no slice begins anew"
