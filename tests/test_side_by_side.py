"""The second process of a run: what it trains, what it shows, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import DAFL, TINY, composition, tiny_run, wait_until

from kd_lightning.config.node import thaw
from kd_lightning.core.log_filters import quiet
from kd_lightning.data.load import dataset_digest
from kd_lightning.distributed.beside import Beside
from kd_lightning.distributed.device import room_for_another, spare_threads
from kd_lightning.distributed.launch import stay_with_parent
from kd_lightning.engine.data import load_data
from kd_lightning.engine.fit import RunContext
from kd_lightning.run.second_process import foreseeable, foreseen_updates, independent, train_controls
from kd_lightning.run.teacher import obtain_teacher
from kd_lightning.store.artifacts import Store
from kd_lightning.tracking.backends import Dashboards

CONTROLLED = ("controls=digits", "controls.scratch.trainer.max_epochs=1")


def fits(store: Path) -> set[str]:
    return {file.parent.name for file in store.glob("fit-*/artifact.json")}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet()


def test_a_run_uses_what_the_second_process_has_trained(store: Path, tmp_path: Path) -> None:
    here = composition(*TINY, "method=dafl", *DAFL, *CONTROLLED, names={"data": "digits", "method": "dafl"})
    train_controls(here)
    teacher_and_controls = fits(store)
    assert len(teacher_and_controls) == 3
    result = tiny_run(tmp_path / "run", *CONTROLLED)
    assert len(fits(store) - teacher_and_controls) == 1  # the student's
    run = json.loads((store / result["run_kept"] / "artifact.json").read_text())
    assert teacher_and_controls < set(run["uses"])


def test_it_leaves_alone_what_counts_questions_or_waits_for_a_stage() -> None:
    asked = composition("method=kd", "source=queried", "teacher.access=probs", "controls=digits")
    assert [*independent(asked)] == ["scratch"]
    staged = composition("experiment=cgan_kd/rotated_digits_small")
    waiting = {name for name, control in staged.controls.items() if "stage:" in str(control.plain())}
    assert waiting
    assert waiting.isdisjoint(independent(staged))
    assert "nokd" in independent(staged) or "scratch" in independent(staged)


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=dafl", *DAFL),
        ("method=zskt", "source.rounds=3", "method.batch_size=16"),
        ("method=nayer", "method.kd_steps=20", "method.g_steps=1", "trainer.max_epochs=3"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_updates_are_foreseen(overrides: tuple[str, ...], store: Path, tmp_path: Path) -> None:
    here = composition(*TINY, *overrides)
    kept = Store(**thaw(here.artifacts))
    dataset = load_data(here.data, kept)
    bench = RunContext(kept, dataset, dataset_digest(dataset), dataset.task, Dashboards())
    foreseen = foreseen_updates(here, bench, obtain_teacher(here, bench))
    assert foreseen == tiny_run(tmp_path / "run", *overrides)["cost"]["updates"]
    assert foreseen > 0


@pytest.mark.parametrize("override", ["trainer.max_time=00:00:10", "+trainer.limit_train_batches=2", "method=kd"])
def test_an_open_end_is_not_foreseen(override: str) -> None:
    assert foreseeable(composition("method=dafl"))
    assert not foreseeable(composition(*(() if "method=" in override else ("method=dafl",)), override))


def test_small_images_take_one_thread_unless_somebody_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    spare_threads(8, 8)
    assert taken == []  # OMP_NUM_THREADS is set for tests
    monkeypatch.delenv("OMP_NUM_THREADS")
    spare_threads(8, 16)
    spare_threads(28, 28)
    assert taken == [1]


def test_there_is_room_for_another_where_both_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_lightning.distributed.device.threads_per_job", lambda slots: 4 // slots)
    room = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        room.append(room_for_another())
    assert room == [True, True, False]


def python(body: str) -> list[str]:
    return [sys.executable, "-c", f"import sys, time, signal\n{body}"]


def test_only_its_fits_are_shown_and_only_when_asked(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said, go = tmp_path / "said", tmp_path / "go"
    body = (
        "print('scratch: half', 'a warning', sep='\\n', file=sys.stderr, flush=True)\n"
        f"open({str(said)!r}, 'w').close()\n"
        f"while not __import__('os').path.exists({str(go)!r}): time.sleep(0.01)\n"
        "print('scratch: whole', 'noise: half', file=sys.stderr, sep='\\n', flush=True)\n"
        "time.sleep(1000)"
    )
    shown = ""

    def shows(text: str) -> bool:
        nonlocal shown
        shown += capfd.readouterr().err
        return text in shown

    with Beside(python(body), ["scratch", "noise"]) as beside:
        beside.begin()
        wait_until(said.exists)
        assert not shows("scratch")
        beside.tell()
        wait_until(lambda: shows("scratch: half\n"))
        go.touch()
        wait_until(lambda: shows("noise: half\n"))
    assert shown == "scratch: half\nscratch: whole\nnoise: half\n"


def test_its_fits_are_shown_while_the_first_waits_for_one(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said, go = tmp_path / "said", tmp_path / "go"
    body = (
        "print('nokd: half', file=sys.stderr, flush=True)\n"
        f"open({str(said)!r}, 'w').close()\n"
        f"while not __import__('os').path.exists({str(go)!r}): time.sleep(0.01)\n"
        "print('nokd: whole', file=sys.stderr, flush=True)\n"
    )
    with Beside(python(body), ["nokd"]) as beside:
        beside.begin()
        wait_until(said.exists)
        with beside.waiting():
            wait_until(lambda: capfd.readouterr().err == "nokd: half\n")
        go.touch()
        assert beside._process is not None
        beside._process.wait()
    assert capfd.readouterr().err == ""


def test_ctrl_c_lets_it_write_its_checkpoint_and_any_other_end_does_not(tmp_path: Path) -> None:
    ready, kept = tmp_path / "ready", tmp_path / "kept"
    body = (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        f"    open({str(ready)!r}, 'w').close()\n"
        "    time.sleep(1000)\n"
        f"except KeyboardInterrupt: open({str(kept)!r}, 'w').close()"
    )
    for error, written in ((ValueError, False), (KeyboardInterrupt, True)):
        ready.unlink(missing_ok=True)
        with suppress(error), Beside(python(body), []) as beside:
            beside.begin()
            wait_until(ready.exists)
            raise error
        assert kept.exists() is written


def test_what_cannot_be_started_is_no_error() -> None:
    with Beside(["/no/such/program"], ["noise"]) as beside:
        beside.begin()
        beside.tell()


def test_it_ends_with_a_first_process_that_is_killed(tmp_path: Path) -> None:
    number = tmp_path / "number"
    second = (
        "import os, time; from kd_lightning.distributed.launch import stay_with_parent; assert stay_with_parent(); "
        f"open({str(number)!r} + '.part', 'w').write(str(os.getpid())); "
        f"os.rename({str(number)!r} + '.part', {str(number)!r}); time.sleep(1000)"
    )
    first = (
        "import sys, time; from kd_lightning.distributed.beside import Beside; "
        f"beside = Beside([sys.executable, '-c', {second!r}], []); beside.begin(); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", first], text=True)
    wait_until(number.exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not stay_with_parent()  # nobody started this one

    def gone() -> bool:
        try:
            os.kill(int(number.read_text()), 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{number.read_text()}/stat").read_text().split()[2] == "Z"

    wait_until(gone)


@pytest.mark.slow
def test_the_command_gives_the_same_with_a_second_process_and_without(tmp_path: Path) -> None:
    results = []
    for word in ("true", "false"):
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "kd_lightning.cli.main", *TINY, "method=dafl", *DAFL, *CONTROLLED),
                *(f"side_by_side={word}", f"artifacts.root={tmp_path}/{word}", f"hydra.run.dir={tmp_path}/run_{word}"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        assert "another process" not in ended.stderr
        assert len(fits(tmp_path / word)) == 4
        results.append(json.loads((tmp_path / f"run_{word}" / "result.json").read_text())["metrics"])
    assert results[0] == results[1]
