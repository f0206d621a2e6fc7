"""The store, listed and tidied: nothing that is used, being made or paid for goes by accident."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from filelock import FileLock

from kd_lightning.cli.artifacts import main
from kd_lightning.store.artifacts import Store
from kd_lightning.store.files import write_json

LONG_AGO = 1_600_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run that used a teacher and a student who used a pool; a fit that nobody uses, answers, a build cut short."""
    root, store = tmp_path / "store", Store(tmp_path / "store")

    def write(folder: Path) -> None:
        (folder / "file").write_bytes(bytes(1000))

    def student(folder: Path) -> None:
        store.obtain("pool", {"source": "zskd", "images": 9, "seed": 0}, write)
        write(folder)

    def run(folder: Path) -> None:
        store.obtain("fit", {"who": "teacher"}, write)
        store.obtain("fit", {"who": "student"}, student)
        write(folder)

    store.obtain("run", {"names": {"method": "zskd", "data": "digits"}, "seed": 3}, run)
    store.obtain("fit", {"who": "nobody"}, write)
    store.obtain("answers", {"who": "teacher"}, write)
    (root / (store.path("fit", {"who": "cut"}).name + ".unfinished")).mkdir()
    (root / (store.path("fit", {"who": "cut"}).name + ".unfinished") / "last.ckpt").write_bytes(bytes(5000))
    (root / (store.path("pool", {"who": "left"}).name + ".old")).mkdir()
    age(root)
    return root


def age(root: Path) -> None:
    for path in root.glob("*"):
        for file in (*path.glob("*"), path):
            os.utime(file, (LONG_AGO, LONG_AGO))


def name(root: Path, kind: str, **config: object) -> str:
    return Store(root).path(kind, config).name


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


def command(root: Path, *words: str) -> int:
    return main(["--root", str(root), *words])


def test_what_was_used_is_noted(root: Path) -> None:
    (run,) = root.glob("run-*/artifact.json")
    meta = json.loads(run.read_text())
    assert meta["uses"] == sorted([name(root, "fit", who="teacher"), name(root, "fit", who="student")])
    student = json.loads((root / name(root, "fit", who="student") / "artifact.json").read_text())
    assert student["uses"] == [name(root, "pool", source="zskd", images=9, seed=0)]


def test_a_file_of_an_earlier_artefact_is_a_use(tmp_path: Path) -> None:
    folder = Store(tmp_path).obtain("fit", {"weights": "/fit-0123456789ab/generator.safetensors"}, lambda f: None)
    assert json.loads((folder / "artifact.json").read_text())["uses"] == ["fit-0123456789ab"]


def test_a_build_that_fails_leaves_its_uses_behind_it(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails(folder: Path) -> None:
        store.obtain("fit", {"a": 1}, lambda f: None)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.obtain("run", {"a": 1}, fails)
    folder = store.obtain("run", {"a": 2}, lambda f: None)
    assert json.loads((folder / "artifact.json").read_text())["uses"] == []


def test_ls_says_what_it_is_how_big_and_who_uses_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(root, "ls", "-l") == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "zskd on digits, seed 3" in next(line for key, line in rows.items() if key.startswith("run-"))
    pool = name(root, "pool", source="zskd", images=9, seed=0)
    row = next(line for line in said.splitlines() if line.startswith(pool))
    assert "1.1 kB" in row
    assert row.rstrip().endswith("1  zskd, 9 images, seed 0")
    assert f"{pool}: uses nothing; used by {name(root, 'fit', who='student')}" in said
    assert "8 in all" in said
    assert command(root, "ls", "answers") == 0
    assert "1 in all" in capsys.readouterr().out


def test_rm_refuses_what_is_used_unless_forced(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, before = name(root, "fit", who="teacher"), names(root)
    assert command(root, "rm", teacher) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{teacher} is used by run-" in line
    assert "--force" in line
    assert command(root, "rm", teacher, "--force", "--dry-run") == 0
    assert names(root) == before
    assert command(root, "rm", teacher, "--force") == 0
    assert names(root) == before - {teacher}
    assert "freed 1.1 kB" in capsys.readouterr().out


def test_rm_takes_what_uses_each_other_together(root: Path) -> None:
    student, pool = name(root, "fit", who="student"), name(root, "pool", source="zskd", images=9, seed=0)
    before = names(root)
    (run,) = root.glob("run-*[0-9a-f]")
    assert command(root, "rm", student[:9], pool) == 2
    assert command(root, "rm", student[:9], pool, run.name.removesuffix(".lock")) == 0
    assert len(before - names(root)) == 3


def test_what_is_being_made_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut, before = name(root, "fit", who="cut"), names(root)
    with FileLock(root / f"{cut}.lock"):
        assert command(root, "rm", f"{cut}.unfinished", "--force") == 2
        assert "is being made by another process" in capsys.readouterr().err
        assert names(root) == before
        assert command(root, "gc") == 0
        assert f"{cut}.unfinished" in names(root)
    assert command(root, "rm", f"{cut}.unfinished") == 0
    assert f"{cut}.unfinished" not in names(root)


def test_nothing_is_removed_where_one_of_several_is_being_made(root: Path) -> None:
    nobody, cut, before = name(root, "fit", who="nobody"), name(root, "fit", who="cut"), names(root)
    with FileLock(root / f"{cut}.lock"):
        assert command(root, "rm", nobody, f"{cut}.unfinished", "--force") == 2
    assert names(root) == before


def test_gc_takes_what_no_run_uses(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(root)
    gone = {
        name(root, "fit", who="nobody"),
        name(root, "fit", who="cut") + ".unfinished",
        name(root, "pool", who="left") + ".old",
    }
    assert command(root, "gc", "--dry-run") == 0
    assert names(root) == before
    assert "would free 6.1 kB" in capsys.readouterr().out
    assert command(root, "gc") == 0
    assert before - names(root) == gone
    (run,) = (path.name for path in root.glob("run-*") if path.is_dir())
    assert command(root, "rm", run) == 0
    assert command(root, "gc") == 0
    assert names(root) == {name(root, "answers", who="teacher")}


def test_gc_leaves_the_young_and_what_it_is_told_to_keep(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, nobody = names(root), name(root, "fit", who="nobody")
    os.utime(root / nobody / "file")
    assert command(root, "gc", "--keep", "pool", name(root, "fit", who="cut")) == 0
    assert names(root) == before
    assert "nothing to remove" in capsys.readouterr().out
    assert command(root, "gc", "--older-than", "0s") == 0
    assert nobody not in names(root)


@pytest.mark.parametrize("why", ["begun", "unknown"])
def test_gc_leaves_fits_while_a_run_may_need_them(why: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if why == "begun":
        (root / (name(root, "run", a=1) + ".unfinished")).mkdir()
    else:
        (file,) = root.glob("run-*/artifact.json")
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "uses"}))
    assert command(root, "gc") == 0
    assert "fits stay" in capsys.readouterr().out
    assert name(root, "fit", who="nobody") in names(root)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("rm", "fit-zzz"), "fit-zzz is not there: kd-artifacts ls names what is"),
        (("rm", "fit"), "fit stands for fit-.*: type more of it"),
    ],
)
def test_a_wrong_name_is_one_line(words, expected, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(root)
    assert command(root, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(expected, line)
    assert names(root) == before


def test_no_store_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path / "none", "ls") == 2
    assert "there is no store" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(tmp_path, "gc", "--older-than", "soon")
    assert "soon is no span of time: type a number and s, m, h, d or w" in capsys.readouterr().err


def test_a_damaged_or_foreign_artefact_is_listed_and_can_be_removed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = name(root, "fit", who="teacher")
    file = root / teacher / "artifact.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))
    assert command(root, "ls") == 0
    assert next(line for line in capsys.readouterr().out.splitlines() if teacher in line).endswith("unreadable")
    assert command(root, "rm", teacher, "--force") == 0
    assert teacher not in names(root)


def test_ls_names_a_fit_by_method_data_and_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"method": {"_target_": "methods.Distill"}, "student": {"_target_": "nets.SmallConvNet"}, "seed": 3}
    names = {"method": "kd", "student": "small_conv"}
    for phase, told in (("student", {"names": names}), ("teacher", {})):
        report = {"phase": phase, "data": "digits", **told}
        Store(tmp_path).obtain("fit", config | {"phase": phase}, lambda f, r=report: write_json(f / "fit.json", r))
    assert command(tmp_path, "ls") == 0
    said = capsys.readouterr().out
    assert "student, kd on digits, small_conv, seed 3" in said
    assert "teacher, Distill on digits, SmallConvNet, seed 3" in said
