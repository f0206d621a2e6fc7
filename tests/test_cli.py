import json
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra import compose

from kd_lightning.cli import main as cli
from kd_lightning.config import overrides, resolvers

COMMAND = Path(sys.executable).with_name("kd-lightning")

METHOD = """
from kd_lightning.methods.base.distiller import Distiller


class Buggy(Distiller):
    def __init__(self, **base):
        super().__init__(**base)
        self.share = 1 / 0
"""


@pytest.fixture
def run(tmp_path):
    """Runs a command in an empty folder; returns it with ``stdout`` and ``stderr``."""

    def run(*command, **environment):
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("KD_", "HYDRA_"))}
        own = {"KD_ARTIFACTS": str(tmp_path / "artifacts"), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=keep | own, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def my_conf(tmp_path):
    """A method and a data set of the user's own, with the method's file beside them."""
    folder = tmp_path / "my_conf"
    for group in ("method", "data", "network"):
        (folder / group).mkdir(parents=True)
    (folder / "method" / "soft.yaml").write_text(
        "# @package _global_\ndefaults: [kd]\nmethod: {label: 0.2}\ntrainer: {max_epochs: 1}\n"
    )
    (folder / "method" / "buggy.yaml").write_text(
        "# @package _global_\nmethod: {_target_: my_method.Buggy}\ntrainer: {max_epochs: 1}\n"
    )
    (folder / "data" / "little.yaml").write_text("defaults: [digits]\nrecipe: {batch_size: 32}\n")
    (folder / "network" / "lean_net.yaml").write_text("defaults: [small_conv]\nwidths: [5, 6]\n")
    (tmp_path / "my_method.py").write_text(METHOD)
    return folder


@pytest.fixture
def refused(monkeypatch, capsys):
    """Gives the command wrong overrides in this process; returns the lines of its error."""

    def refused(*args):
        monkeypatch.setattr(sys, "argv", ["kd-lightning", *args])
        monkeypatch.setattr(sys, "path", sys.path.copy())
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        first, *lines = capsys.readouterr().err.splitlines()
        assert first == "error: this composition cannot run:"
        return [line.strip() for line in lines]

    return refused


def without_torch(*args):
    """A program that runs the command and then tells whether torch came with it."""
    return textwrap.dedent(f"""
        import sys
        from kd_lightning.cli.main import main
        sys.argv = ["kd-lightning", *{args!r}]
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, stop.code
        heavy = {{"torch", "lightning", "numpy", "sklearn"}} & set(sys.modules)
        assert not heavy, heavy
    """)


def test_importing_the_package_imports_no_torch(run):
    names = ("cli.main", "config.overrides", "config.resolvers", "errors")
    program = f"import sys, {', '.join(f'kd_lightning.{name}' for name in names)}\nassert 'torch' not in sys.modules"
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr


def test_help_is_a_page_that_needs_no_torch(run):
    done = run(sys.executable, "-c", without_torch("--help"))
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    for word in (
        "data",
        "source",
        "teacher",
        "student",
        "method",
        "experiment",
        "cifar10",
        "few_shot",
        "dafl",
        "seeds_all",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("method=", "method=kd"),
        ("sweep=", "sweep=seeds_all"),
        ("teacher.acc", "teacher.access="),
        ("teacher=", "teacher=resnet34"),
        ("student=resnet1", "student=resnet18"),
    ],
)
def test_completion_needs_no_torch(run, line, expected):
    line = f"kd-lightning {line}"
    done = run(sys.executable, "-c", without_torch("-sc", "query=bash"), COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout.split()


def test_help_without_its_folder_is_one_line(run):
    done = run(COMMAND, "--help", "--config-dir", "gone")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --config-dir gone: there is no such folder\n"


def test_help_names_the_users_own_members(run, my_conf):
    done = run(COMMAND, "--help", "--config-dir", my_conf)
    assert "soft" in done.stdout
    assert [len(re.findall(rf"\b{name}\b", done.stdout)) for name in ("lean_net", "resnet34")] == [1, 1]


@pytest.mark.slow
def test_wrong_overrides_end_with_all_of_them_and_code_2(run, tmp_path):
    done = run(
        COMMAND,
        "method=dafl",
        "method.lrr=1",
        "+teacher.acess=probs",
        "method.oh=abc",
        "data.size=null",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    first, *lines = done.stderr.strip().splitlines()
    assert first == "error: this composition cannot run:"
    begin = {line.strip().split(":")[0] for line in lines}
    assert begin == {"teacher.acess", "method.lrr", "method.oh", "data.size"}
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_composition_that_cannot_run_leaves_its_reason(run, tmp_path):
    done = run(COMMAND, "method=dafl", "+method.lrr=1", "teacher.access=probs", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "did you mean method.optimizer.lr" in done.stderr
    assert "needs the teacher's gradients" in done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "method.lrr" in result["reason"]


@pytest.mark.slow
def test_a_bug_shows_its_traceback(run, my_conf, tmp_path):
    done = run(
        COMMAND, "--config-dir", my_conf, "method=buggy", "data=little", "source=real", "teacher=none", "controls=none",
        f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "self.share = 1 / 0" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["method"] == "buggy"


def test_it_tells_its_own_version_also_as_a_module(run):
    assert [run(*start, "--version").stdout for start in ([COMMAND], [sys.executable, "-m", "kd_lightning"])] == [
        f"kd-lightning {version('kd_lightning')}\n"
    ] * 2


@pytest.mark.parametrize("command", ["kd-lightning", "kd-report"])
def test_a_closed_pipe_is_no_traceback(command, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [Path(COMMAND).with_name(command), "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # argparse ignores that its help cannot be written


@pytest.mark.slow
def test_several_values_without_a_sweep(refused):
    assert refused("seed=0,1") == ["seed=0,1: several values; add -m to run one job for each"]


def test_misspelt_members_are_all_named_at_once_without_torch(run):
    words = ("-m", "problem=mnits", "seed=0,1", "method=kd,kdd,dafll", "network@teacher.net=vgg91", "student.depht=3")
    code = without_torch(*words).replace("assert not stop.code", "assert stop.code == 2")
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert [line.strip() for line in done.stderr.splitlines()[1:]] == [
        "problem=mnits: there is no problem called mnits; did you mean problem=mnist?",
        "network@teacher.net=vgg91: there is no network called vgg91; did you mean network@teacher.net=vgg11?",
        "method=kdd: there is no method called kdd; did you mean method=kd?",
        "method=dafll: there is no method called dafll; did you mean method=dafl?",
    ]


def test_a_misspelt_key_costs_two_compositions(monkeypatch):
    composed = []
    resolvers.register()
    monkeypatch.setattr(overrides, "compose", lambda *args: composed.append(args) or compose(*args))
    found = overrides.read(["seeed=1"])
    assert overrides.misspelt_keys(found) == ["seeed: no file sets it; did you mean seed?"]
    assert len(composed) == 2


@pytest.mark.slow
def test_a_sweep_names_every_fault_once(refused):
    lines = refused("-m", "seed=0,1", "method=kd,bss", "student.depht=3")
    assert sum(line.startswith("student.depht: SmallConvNet has no such setting") for line in lines) == 1


def test_a_sweep_that_is_not_there(refused):
    assert refused("sweep=seedz", "method=kd,dafl") == [
        "sweep=seedz: there is no sweep called seedz; did you mean sweep=seeds?"
    ]


def test_a_sweep_of_the_users_own_is_read_before_it_starts(refused, my_conf):
    (my_conf / "sweep").mkdir()
    (my_conf / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {method: 'soft,softt'}}}\n"
    )
    assert refused("--config-dir", str(my_conf), "sweep=mine") == [
        "method=softt: there is no method called softt; did you mean method=soft?"
    ]


@pytest.mark.slow
def test_a_setting_that_no_file_sets_is_shown_with_its_plus(refused):
    assert refused("method.log_every=5") == ["method.log_every: no file sets it, so type +method.log_every=5"]


def test_a_config_dir_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kd-lightning", "--config-dir", "gone"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --config-dir gone: there is no such folder\n"


@pytest.mark.slow
def test_a_sweep_hands_the_users_folder_to_its_jobs(run, my_conf, tmp_path):
    done = run(
        COMMAND, "-m", "--config-dir", my_conf, "seed=3", "method=soft", "data=little", "debug=smoke",
        "controls=none", f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "sweep" / "0" / "result.json").read_text())
    assert [result[key] for key in ("status", "method", "data", "seed")] == ["ok", "soft", "little", 3]


@pytest.mark.slow
def test_a_small_sweep_of_the_default(run, tmp_path):
    done = run(COMMAND, "sweep=seeds", "seed=0,1", "debug=smoke", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads((tmp_path / "sweep" / str(i) / "result.json").read_text()) for i in (0, 1)]
    assert [result["status"] for result in results] == ["ok", "ok"]
    assert all({"test/accuracy", "noise/accuracy"} <= result["metrics"].keys() for result in results)
    assert [result["seed"] for result in results] == [0, 1]
    assert "±" in done.stdout
