import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE, wait_until
from hydra.core.override_parser.overrides_parser import OverridesParser

from kd_lightning.distributed.gpu_slots import missing_gpus, quoted, resume_override, threads_per_job, visible_slots
from kd_lightning.distributed.job_lines import JobLines
from kd_lightning.results.run_index import collect
from kd_lightning.results.table import fold

APP = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

from kd_lightning.distributed.launch import stay_with_parent

plain = {"seed": 0, "do": "work", "root": "", "nap": 0.0, "sweep": {"resume": None}}
ConfigStore.instance().store("config", plain)
ConfigStore.instance().store("other", plain | {"root": "other"})


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    out = Path(HydraConfig.get().runtime.output_dir)
    with (out / "starts").open("a") as starts:  # a Ctrl-C while a file closes by itself is lost
        starts.write("x")
    if cfg.do == "family":
        (out / "pids").write_text(f"{subprocess.Popen(['sleep', '600']).pid} {os.getpid()}")
    time.sleep(cfg.nap)
    if cfg.do == "raise":
        raise RuntimeError("the loss is NaN")
    if cfg.do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.do == "orphan":
        (out / "child").write_text(str(subprocess.Popen(["sleep", "2000"]).pid))
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.do == "nothing":
        return
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_text() if Path("/proc").exists() else ""
    if cfg.do == "kill the parent":
        os.kill(os.getppid(), signal.SIGKILL)
    accuracy = 0.9 + cfg.seed / 100
    result = {
        "format_version": 1, "status": "ok", "reason": None, "system": "kd", "data": "digits",
        "seed": cfg.seed, "metrics": {"test/accuracy": accuracy}, "objective": accuracy, "root": cfg.root,
        "cuda": os.environ["CUDA_VISIBLE_DEVICES"], "threads": os.environ["OMP_NUM_THREADS"],
        "out": str(out), "parent": parent, "sweep": os.environ["KD_SWEEP"], "verbose": HydraConfig.get().verbose,
    }
    (out / "result.json").write_text(json.dumps(result))
    if cfg.do == "exit":
        sys.exit(3)


if __name__ == "__main__":
    stay_with_parent()
    main()
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    (tmp_path / "tiny_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    launcher = ["hydra/launcher=slots", "hydra.launcher.module=tiny_app"]
    return [sys.executable, "tiny_app.py", "-m", *launcher]


def sweep(command, *overrides, slots='["",""]'):
    return subprocess.run(
        [*command, f"hydra.launcher.slots={slots}", *overrides], capture_output=True, text=True, timeout=PATIENCE
    )


def result(folder):
    return json.loads((folder / "result.json").read_text())


def starts(folder):
    return len((folder / "starts").read_text())


@pytest.mark.slow
def test_jobs_that_raise_or_are_killed_leave_the_others_alone_and_resume_runs_them_again(command, tmp_path):
    overrides = ["seed=0,1", "do=die,raise,work", "hydra.sweep.dir=out"]
    ended = sweep(command, *overrides)
    out = tmp_path / "out"
    assert ended.returncode == 1
    assert sorted(path.parent.name for path in out.glob("*/result.json")) == ["2", "5"]
    lines = ended.stdout.splitlines()
    for number, reason in ((0, "SIGKILL"), (1, "the loss is NaN"), (3, "SIGKILL"), (4, "the loss is NaN")):
        (line,) = [line for line in lines if f"job {number} failed" in line]
        assert reason in line
        assert str(out / str(number) / "console.log") in line
    order = [i for i, line in enumerate(lines) if "job 0 failed" in line or "job 5 on" in line]
    assert "job 0 failed" in lines[order[0]], "a failure is told when it happens"
    assert any("job 2 done" in line and "accuracy 0.9000" in line for line in lines)
    assert "Traceback" not in ended.stderr + ended.stdout
    (last,) = ended.stderr.splitlines()
    assert last.startswith("4 of 6 jobs failed: 0, 1, 3, 4.")
    table = (out / "table.md").read_text()
    assert "± 0.0071" in table
    assert table.count("failed: ") == 4
    assert (out / "table.csv").is_file()

    again = sweep(command, *overrides[:2], f"sweep.resume={out}")
    assert again.returncode == 1
    assert [starts(out / str(number)) for number in range(6)] == [2, 2, 1, 2, 2, 1]
    assert again.stdout.count("is done already") == 2


@pytest.mark.slow
def test_resume_goes_by_the_overrides_not_by_the_position(command, tmp_path):
    assert sweep(command, "seed=0,1", "hydra.sweep.dir=out").returncode == 0
    out = tmp_path / "out"
    resumed = sweep(command, "seed=1,2,0,3", "sweep.resume=out")
    assert resumed.returncode == 0, resumed.stderr
    numbers = sorted(int(path.parent.name) for path in out.glob("*/result.json"))
    assert {number: result(out / str(number))["seed"] for number in numbers} == {0: 0, 1: 1, 3: 3, 4: 2}
    assert [starts(out / str(number)) for number in numbers] == [1, 1, 1, 1]
    assert not (tmp_path / "multirun").exists()
    missing = sweep(command, "seed=1", "sweep.resume=nowhere")
    assert missing.returncode == 1
    assert missing.stderr.startswith("sweep.resume=nowhere is not a folder")


def gpus(folder, monkeypatch, count):
    """A driver that lists so many, first on the path."""
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: A (UUID: x)'\n" for i in range(count)))
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_each_slot_gives_its_jobs_devices_and_threads(command, tmp_path, monkeypatch):
    gpus(tmp_path, monkeypatch, 5)
    assert sweep(command, "seed=0,1,2", "nap=0.3", "hydra.sweep.dir=out", slots='["4","0,1",""]').returncode == 0
    results = [result(tmp_path / "out" / str(number)) for number in range(3)]
    assert [r["cuda"] for r in results] == ["4", "0,1", ""]
    assert {r["threads"] for r in results} == {str(threads_per_job(3))}
    assert {r["sweep"] for r in results} == {"out"}  # what groups them on a dashboard


@pytest.mark.slow
def test_the_users_thread_count_stays(command, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert sweep(command, "seed=0", "hydra.sweep.dir=out").returncode == 0
    assert result(tmp_path / "out" / "0")["threads"] == "7"


@pytest.mark.slow
def test_paths_and_hydras_own_settings_arrive_as_they_were_given(command, tmp_path):
    odd = "/data/a b,c=d'e\"f${g}"
    ended = sweep(
        [*command[:3], "--config-name", "config", *command[3:]],
        f"root={quoted(odd)}",
        f"hydra.sweep.dir={quoted('runs, lr=0.1 (a)')}",
        "hydra.verbose=true",
        "seed=1,2",
    )
    assert ended.returncode == 0, ended.stderr
    for number in range(2):
        there = result(tmp_path / "runs, lr=0.1 (a)" / str(number))
        assert there["root"] == odd
        assert there["out"] == str(tmp_path / "runs, lr=0.1 (a)" / str(number))
        assert there["verbose"] is True


@pytest.mark.slow
def test_the_chosen_config_is_the_jobs_too(command, tmp_path):
    ended = sweep([*command[:3], "--config-name", "other", *command[3:]], "hydra.sweep.dir=out", "seed=1")
    assert ended.returncode == 0, ended.stderr
    assert result(tmp_path / "out" / "0")["root"] == "other"


@pytest.mark.slow
def test_no_result_and_a_late_exit_code_are_failures(command, tmp_path):
    ended = sweep(command, "do=nothing,exit", "hydra.sweep.dir=out")
    assert ended.returncode == 1
    assert "ended without writing result.json" in ended.stdout
    assert "exit code 3 after its result was written" in ended.stdout


@pytest.mark.slow
def test_what_a_killed_job_had_started_does_not_keep_the_slot_busy(command, tmp_path):
    assert sweep(command, "do=orphan", "hydra.sweep.dir=out").returncode == 1
    status = Path("/proc") / (tmp_path / "out" / "0" / "child").read_text() / "status"
    wait_until(lambda: ended(status))


def ended(status):
    try:
        return "(zombie)" in status.read_text()
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a copy of a process may not go on")
@pytest.mark.parametrize("warm", [True, False])
def test_jobs_begin_as_copies_of_a_process_with_the_imports(command, tmp_path, warm):
    done = sweep(command, "seed=0,1,2", "hydra.sweep.dir=out", f"hydra.launcher.warm={warm}")
    assert done.returncode == 0, done.stdout + done.stderr
    parents = {result(tmp_path / "out" / n)["parent"] for n in "012"}
    assert len(parents) == 1
    assert ("kd_lightning.distributed.warm_jobs" in parents.pop()) == warm


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a copy of a process may not go on")
def test_a_sweep_goes_on_without_the_process_with_the_imports(command, tmp_path):
    done = sweep(command, "do=kill the parent,work,raise", "hydra.sweep.dir=out", slots='[""]')
    assert done.returncode == 1
    assert "1 of 3 jobs failed: 2." in done.stderr, done.stdout + done.stderr
    assert [result(tmp_path / "out" / n)["status"] for n in "01"] == ["ok", "ok"]
    assert "kd_lightning.distributed.warm_jobs" in result(tmp_path / "out" / "0")["parent"]
    assert "kd_lightning.distributed.warm_jobs" not in result(tmp_path / "out" / "1")["parent"]


@pytest.mark.slow
def test_what_jobs_share_is_imported_without_a_look_at_the_gpus():
    code = """
import torch
from importlib import import_module
from hydra.core.plugins import Plugins

def touched(*_):
    raise AssertionError("a copy of a process that has asked CUDA cannot use it")

for name in ("_cuda_getDeviceCount", "_cuda_init"):
    setattr(torch._C, name, touched)
torch.cuda._lazy_init = touched
Plugins.instance()
from hydra_plugins.kd_slots import IMPORTS

for name in IMPORTS:
    import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_cores_are_shared_among_the_slots(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)), raising=False)
    assert [threads_per_job(slots) for slots in (1, 2, 4, 20)] == [9, 4, 2, 1]


@pytest.mark.slow
def test_a_stale_result_does_not_pass_for_a_new_one(command, tmp_path):
    assert sweep(command, "seed=1", "hydra.sweep.dir=out").returncode == 0
    assert sweep(command, "do=nothing", "hydra.sweep.dir=out").returncode == 1


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_parent_ends_its_jobs_and_starts_no_more(command, tmp_path, which):
    if signal.getsignal(which) is signal.SIG_IGN:
        pytest.skip(f"{which.name} is ignored here, so also by the parent")
    overrides = ["nap=0,1000,1001,1002", "hydra.sweep.dir=out", 'hydra.launcher.slots=["",""]']
    parent = subprocess.Popen([*command, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out = tmp_path / "out"
    wait_until(lambda: (out / "2" / "starts").exists() and (out / "1" / "starts").exists(), parent)
    assert "accuracy" in (out / "table.md").read_text(), "the table keeps up with the sweep"
    os.kill(parent.pid, which)
    stdout, stderr = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 130
    assert "Traceback" not in stderr
    assert not (out / "3").exists()
    assert "interrupted" in (out / "1" / "console.log").read_text()
    assert "stopped with 1 of 4 jobs done" in stdout
    assert "accuracy" in stdout[stdout.index("job 0 done") + 40 :], "what is finished is printed as a table"
    left = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True)
    assert left.stdout == ""


def alive(pid):
    status = Path("/proc") / str(pid) / "status"
    return status.exists() and "(zombie)" not in status.read_text()


def test_killing_the_parent_ends_its_jobs_and_all_that_they_started(command, tmp_path):
    overrides = ["nap=600", "seed=0,1,2", "do=family", "hydra.sweep.dir=out", 'hydra.launcher.slots=["",""]']
    out = tmp_path / "out"
    pids = []
    with subprocess.Popen([*command, *overrides], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        try:
            wait_until(lambda: all((out / n / "pids").exists() and (out / n / "pids").read_text() for n in "01"))
            pids = [int(pid) for n in "01" for pid in (out / n / "pids").read_text().split()]
            assert len(pids) == 4
            assert [run.status for run in collect([out])] == ["running", "running"]
            assert fold(collect([out])).notes == [f"running: {out / n}" for n in "01"]
            parent.kill()
            parent.wait()
            wait_until(lambda: not any(map(alive, pids)))
            assert [run.status for run in collect([out])] == ["unfinished", "unfinished"]
        finally:
            parent.kill()
            for pid in filter(alive, pids):
                os.kill(pid, signal.SIGKILL)


def test_an_empty_list_of_slots_is_refused(command):
    ended = sweep(command, "seed=0,1", slots="[]")
    assert ended.returncode == 1
    assert "hydra.launcher.slots is empty" in ended.stderr


def test_slots_default_to_the_visible_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_slots() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_slots() == [""]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_slots() == [""]
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g Device 0: (UUID: y)'\necho 'GPU 1: B'\n")
    smi.chmod(0o755)
    assert visible_slots() == ["0", "1"]
    smi.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert visible_slots() == [""]


@pytest.mark.parametrize("path", ["/a b/c=1,2", "/it's", "/end\\", "/{x}[y]", "/ü*~#"])
def test_quoted_survives_hydras_grammar(path):
    parsed = OverridesParser.create().parse_override(f"hydra.run.dir={quoted(path)}")
    assert parsed.value() == path


@pytest.mark.parametrize("path", ["/runs/2026-01-01", "/a b/c=1,2"])
def test_the_way_to_resume_can_be_pasted_into_a_shell(path):
    (word,) = shlex.split(resume_override(Path(path)))
    parsed = OverridesParser.create().parse_override(word)
    assert (parsed.key_or_group, parsed.value()) == ("sweep.resume", path)


def test_a_gpu_that_is_not_there_is_refused_before_any_job_starts(command, tmp_path, monkeypatch):
    gpus(tmp_path, monkeypatch, 2)
    ended = sweep(command, "seed=0,1", "hydra.sweep.dir=out", slots='["1","0,7"]')
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[0]
    assert line.startswith("hydra.launcher.slots: there is no GPU 7: this machine has GPUs 0, 1.")
    assert not (tmp_path / "out").exists()


def test_slots_are_compared_with_what_is_allowed_and_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-ab")
    assert missing_gpus(["2", "GPU-ab", ""]) == ""
    assert "no GPU 0: CUDA_VISIBLE_DEVICES=2,GPU-ab allows 2, GPU-ab" in missing_gpus(["0", "2"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "allows none" in missing_gpus(["0"])
    assert missing_gpus(["", "-1"]) == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    gpus(tmp_path, monkeypatch, 1)
    assert missing_gpus(["0", "GPU-ab", "MIG-1"]) == ""  # names the driver alone can check
    assert "no GPU 1, 7" in missing_gpus(["0,1", "7"])
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    if not Path("/dev/kfd").exists():
        assert "no GPU 0: this machine has no GPU" in missing_gpus(["0"])


@pytest.mark.slow
def test_a_sweep_of_another_version_is_not_overwritten(command, tmp_path):
    assert sweep(command, "seed=1", "hydra.sweep.dir=out").returncode == 0
    file = tmp_path / "out" / "0" / "result.json"
    newer = file.read_text().replace('"format_version": 1', '"format_version": 2')
    file.write_text(newer)
    resumed = sweep(command, "seed=1", "sweep.resume=out")
    assert resumed.returncode == 1
    line = resumed.stderr.splitlines()[0]
    assert line.startswith("sweep.resume:")
    assert "has format_version 2, this kd_lightning reads 1" in line
    assert file.read_text() == newer
    assert starts(tmp_path / "out" / "0") == 1


@pytest.mark.slow
def test_a_half_written_result_is_run_again(command, tmp_path):
    assert sweep(command, "seed=1", "hydra.sweep.dir=out").returncode == 0
    (tmp_path / "out" / "0" / "result.json").write_text('{"format_version": 1, "sta')
    assert sweep(command, "seed=1", "sweep.resume=out").returncode == 0
    assert starts(tmp_path / "out" / "0") == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_running_jobs_have_a_line_each_that_is_renewed_in_place(tmp_path: Path) -> None:
    jobs = [SimpleNamespace(number=number, folder=tmp_path / str(number)) for number in (3, 4)]
    for job in jobs:
        job.folder.mkdir()
    (jobs[0].folder / "console.log").write_text("first\nstudent 1%\rstudent 2%\n\n")
    stream = Terminal()
    lines = JobLines(stream, seconds=0.0)
    lines.show(jobs)
    assert stream.getvalue() == "job 3: student 2%\njob 4: \n"
    lines.show(jobs[:1])
    assert stream.getvalue().endswith("\x1b[2A\x1b[Jjob 3: student 2%\n")
    lines.clear()
    lines.clear()
    assert stream.getvalue().endswith("\n\x1b[1A\x1b[J")
    silent = io.StringIO()
    JobLines(silent, seconds=0.0).show(jobs)
    assert silent.getvalue() == ""
