import json
import os
import time
from pathlib import Path

import pytest
from test_report import run_at

from kd_lightning.cli.report import main
from kd_lightning.errors import UserError
from kd_lightning.results.records import command_of, fault, from_run, read_records, without_paths, write_records
from kd_lightning.results.run_index import collect, read_run

RUN = {
    "task": {"kind": "regression", "unit": "degrees"},
    "models": {"student": {"parameters": 46_380}},
    "cost": {"seconds": {"student": 12.34, "total": 20.0}, "queries": 0, "images_synthesised": 64, "updates": 300},
    "device": "cpu x2",
    "precision": "32-true",
    "versions": {"torch": "2.15.0"},
    "git": "0123abc",
}


def kept(folder: Path, name: str = "dafl_s0", **more: object) -> Path:
    """A record as somebody might write it."""
    path = folder / "mnist" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    holds = {"record_version": 1, "source": "recorded", "seed": 0, "metrics": {"test/accuracy": 0.5}} | more
    path.write_text(json.dumps({key: value for key, value in holds.items() if value is not None}))
    return path


def test_a_record_says_what_the_run_was_and_leaves_out_what_nobody_knows(tmp_path):
    folder = run_at(tmp_path / "run", ["method=dafl", "seed=3"], 0.97, seed=3, **RUN)
    noon = time.mktime((2026, 5, 17, 12, 0, 0, 0, 0, -1))
    os.utime(folder / "result.json", (noon, noon))
    assert from_run(read_run(folder)) == {
        "record_version": 1,
        "source": "run",
        "date": "2026-05-17",
        "command": "kd-lightning method=dafl seed=3",
        "seed": 3,
        "metrics": {"test/accuracy": 0.97, "teacher/accuracy": 0.99},
        "unit": "degrees",
        "parameters": {"student": 46_380},
        "seconds": {"student": 12.3, "total": 20.0},
        "updates": 300,
        "queries": 0,
        "images_synthesised": 64,
        "device": "cpu",
        "threads": 2,
        "precision": "32-true",
        "versions": {"torch": "2.15.0"},
        "git": "0123abc",
    }


def test_a_record_names_no_path_and_no_folder_of_the_machine(tmp_path):
    said = ["data=image_folder", "data.root=/home/me/photos", "teacher.weights=~/nets/lenet5.safetensors", "seed=1"]
    said += ["hydra.run.dir=/tmp/x", "artifacts.root=/scratch/me", "logger=wandb", "experiment=bss/mnist_5pct"]
    said += ["source.weights=[/home/me/a.safetensors,b/c.safetensors]"]
    folder = run_at(tmp_path / "run", said, seed=1)
    assert command_of(read_run(folder)) == (
        "kd-lightning data=image_folder data.root=photos teacher.weights=lenet5.safetensors seed=1 "
        "experiment=bss/mnist_5pct 'source.weights=[a.safetensors,b/c.safetensors]'"
    )
    assert str(tmp_path) not in json.dumps(from_run(read_run(folder)))
    assert without_paths("learning rate / 10, 3/4 of it") == "learning rate / 10, 3/4 of it"


def test_what_was_taken_away_stands_in_the_command_as_typed(tmp_path):
    folder = run_at(tmp_path / "run", ["method=kd", "~controls.noise", "seed=1"], seed=1)
    assert command_of(read_run(folder)) == "kd-lightning method=kd ~controls.noise seed=1"


def test_a_sweep_that_chooses_groups_stands_in_the_command(tmp_path):
    folder = run_at(tmp_path / "run", ["sweep=classic", "sweep.resume=old", "method=kd", "seed=1"], seed=1)
    assert command_of(read_run(folder)) == "kd-lightning sweep=classic method=kd seed=1"


def test_every_run_becomes_a_file_named_after_method_setting_and_seed(tmp_path, capsys):
    for i, (method, lr, seed) in enumerate([("dafl", 0.1, 0), ("dafl", 0.1, 1), ("dafl", 0.2, 0), ("kd", 0.1, 0)]):
        run_at(tmp_path / "runs" / f"{i}", [f"method={method}", f"lr={lr}"], 0.9, seed=seed, method=method)
    assert main([str(tmp_path / "runs"), "--record", str(tmp_path / "results" / "mnist")]) == 0
    assert "dafl_0.1_s1.json" in capsys.readouterr().err
    names = ["dafl_0.1", "dafl_0.1", "dafl_0.2", "kd_0.1"]
    assert [(r.table, r.name, r.seed) for r in read_records(tmp_path / "results")] == [
        ("mnist", name, seed) for name, seed in zip(names, (0, 1, 0, 0), strict=True)
    ]


def test_recording_again_replaces_the_file(tmp_path):
    folder = run_at(tmp_path / "run", ["method=dafl"], 0.8)
    kept(tmp_path / "results", metrics={"test/accuracy": 0.5})
    write_records([read_run(folder)], tmp_path / "results" / "mnist")
    (record,) = read_records(tmp_path / "results")
    assert record.metric("test/accuracy") == (0.8, None, 1)


def test_runs_that_failed_or_would_share_a_file_are_not_recorded(tmp_path):
    bad = run_at(tmp_path / "bad" / "0", ["seed=0"], status="failed")
    with pytest.raises(UserError, match=r"only finished runs are recorded: .*bad.*the loss is NaN"):
        write_records([read_run(bad)], tmp_path / "results" / "mnist")
    for i in range(2):
        run_at(tmp_path / "two" / f"{i}", ["seed=0", f"teacher.seed={i}"], seed=0)
    with pytest.raises(UserError, match="two runs would both be recorded"):
        write_records(collect([tmp_path / "two"]), tmp_path / "results" / "mnist")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"metrics": None}, "no metrics"),
        ({"metric": {}}, "unknown key metric"),
        ({"metrics": {"test/accuracy": float("nan")}}, "not a finite number"),
        ({"metrics": {"test/accuracy": True}}, "not a finite number"),
        ({"seed": "0"}, "seed is '0'"),
        ({"seed": None}, "either a seed or, as a mean, n"),
        ({"n": 3}, "either a seed or, as a mean, n"),
        ({"record_version": 2}, "record_version 2"),
        ({"source": "guessed"}, "neither run nor recorded"),
        ({"note": "see /home/me/notes"}, "names a path of a machine, /home/me/notes"),
        ({"seed": 1}, "name it NAME_s1.json"),
    ],
)
def test_a_file_that_is_no_record_is_named_with_its_fault(tmp_path, more, complaint):
    path = kept(tmp_path, **more)
    with pytest.raises(UserError, match=complaint) as error:
        read_records(tmp_path)
    assert str(path) in str(error.value)


def test_what_is_not_json_is_named(tmp_path):
    kept(tmp_path).write_text('{"seed": ')
    with pytest.raises(UserError, match=r"dafl_s0\.json cannot be read as JSON"):
        read_records(tmp_path)
    assert fault([1]) == "not a JSON object"


def test_a_mean_beside_runs_of_its_own_is_refused(tmp_path):
    kept(tmp_path, "dafl_mean", seed=None, n=3, std={"test/accuracy": 0.1})
    (record,) = read_records(tmp_path)
    assert record.metric("test/accuracy") == (0.5, 0.1, 3)
    kept(tmp_path)
    with pytest.raises(UserError, match=r"dafl_mean\.json is the mean of runs that have records of their own"):
        read_records(tmp_path)
