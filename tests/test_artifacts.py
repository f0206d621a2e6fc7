"""Built once, kept whole, gone on with after a kill, refused in one line where nothing can be written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import FORKS, PATIENCE

from kd_lightning.errors import UserError
from kd_lightning.store.artifacts import Store, by_content
from kd_lightning.store.files import copy_into, digest, file_digest, write_json, writing

ONE = {"lr": 0.1, "seed": 0}


def write(folder: Path, text: str = "done") -> None:
    (folder / "file").write_text(text)


def build_slowly(root: Path, seconds: float) -> None:
    def build(folder: Path) -> None:
        with (folder / "builds").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)

    Store(root).obtain("thing", ONE, build)


def build_half_and_die(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    Store(root).obtain("thing", ONE, build)


def test_same_config_is_built_once_and_another_config_apart(tmp_path: Path) -> None:
    built = []
    store = Store(tmp_path)
    for config in (ONE, dict(reversed(ONE.items())), ONE | {"seed": 1}, ONE | {"lr": 0.2}):
        folder = Store(tmp_path).obtain("thing", config, lambda f: built.append(f) or write(f))
        assert (folder / "file").read_text() == "done"
    assert len(built) == 3
    assert store.path("thing", ONE) != store.path("other", ONE)
    meta = json.loads((store.path("thing", ONE) / "artifact.json").read_text())
    assert meta["config"] == ONE


@pytest.mark.slow
def test_two_processes_at_once_build_one(tmp_path: Path) -> None:
    jobs = [FORKS.Process(target=build_slowly, args=(tmp_path, 1.0)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    builds = (Store(tmp_path).path("thing", ONE) / "builds").read_text().splitlines()
    assert len(builds) == 1


def test_waiting_for_another_build_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, told, said = threading.Event(), threading.Event(), io.StringIO()
    monkeypatch.setattr(said, "flush", told.set)
    monkeypatch.setattr("sys.stderr", said)
    other = threading.Thread(
        target=Store(tmp_path).obtain,
        args=("thing", ONE, lambda f: (started.set(), told.wait(PATIENCE), write(f))),
    )
    other.start()
    started.wait(PATIENCE)
    Store(tmp_path).obtain("thing", ONE, lambda f: pytest.fail("built twice"))
    other.join()
    assert "another process is making thing-" in said.getvalue()


def test_a_killed_build_looks_unfinished_and_the_next_goes_on_from_it(tmp_path: Path) -> None:
    job = FORKS.Process(target=build_half_and_die, args=(tmp_path,))
    job.start()
    job.join()
    assert job.exitcode == -signal.SIGKILL
    store = Store(tmp_path)
    assert not store.path("thing", ONE).exists()
    seen = []
    folder = store.obtain("thing", ONE, lambda f: seen.append((f / "half").read_text()) or write(f))
    assert seen == ["half"]
    assert sorted(p.name for p in folder.iterdir()) == ["artifact.json", "file", "half"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name, folder.name + ".lock"]


def test_a_build_that_raises_is_not_kept(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Store(tmp_path).obtain("thing", ONE, fail)
    assert not Store(tmp_path).path("thing", ONE).exists()


def test_without_reuse_everything_is_built_anew_but_only_once_a_run(tmp_path: Path) -> None:
    Store(tmp_path).obtain("thing", ONE, lambda f: write(f, "old"))
    unfinished = tmp_path / (Store(tmp_path).path("thing", ONE).name + ".unfinished")
    unfinished.mkdir()
    (unfinished / "half").write_text("of an interrupted build")
    store, built = Store(tmp_path, reuse=False), []
    for _ in range(2):
        folder = store.obtain("thing", ONE, lambda f: built.append(1) or write(f, "new"))
    assert len(built) == 1
    assert (folder / "file").read_text() == "new"
    assert not (folder / "half").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name, folder.name + ".lock"]


def test_a_failed_rebuild_leaves_the_old_one(tmp_path: Path) -> None:
    folder = Store(tmp_path).obtain("thing", ONE, lambda f: write(f, "old"))
    with pytest.raises(ZeroDivisionError):
        Store(tmp_path, reuse=False).obtain("thing", ONE, lambda f: 1 / 0)
    assert (folder / "file").read_text() == "old"


def test_a_finished_artefact_needs_no_writable_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Store(tmp_path).obtain("thing", ONE, write)
    monkeypatch.setattr("kd_lightning.store.artifacts.FileLock", lambda *_: pytest.fail("locked"))
    assert Store(tmp_path).obtain("thing", ONE, write) == folder


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*artifacts\.root=DIR") as refusal:
        Store(tmp_path / "file" / "store").obtain("thing", ONE, write)
    assert "\n" not in str(refusal.value)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "result.json", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_json(tmp_path / "result.json", {"a": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_safetensors_own_error_is_the_same_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file  # not above: the processes started here need no torch

    with pytest.raises(UserError, match="cannot write"), writing(tmp_path):
        save_file({}, tmp_path / "missing" / "file.safetensors")


def test_digests_do_not_depend_on_order_and_see_every_change(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest({"a": 1}), digest({"a": 2}), digest({"a": "1"}), digest({"a": [1]})}) == 4
    (tmp_path / "x").write_bytes(b"x")
    assert file_digest(tmp_path / "x") == "2d711642b726"


def test_only_a_file_of_a_finished_artefact_counts_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "art"
    kept = Store(root).obtain("fit", ONE, write)
    unfinished = root / "fit-0123456789ab"
    others = [
        tmp_path / "art2" / "w.pt",
        tmp_path / "art2" / kept.name / "file",
        root / "w.pt",
        root / "mine" / "w.pt",
        unfinished / "file",
        root / f"{kept.name}.unfinished" / "file",
        root / f"{kept.name}.old" / "file",
        root / kept.name / ".." / ".." / "elsewhere.pt",
    ]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    (tmp_path / "weights").write_text("before")
    monkeypatch.chdir(tmp_path)
    named = [*map(str, others), "weights", "./art2/w.pt"]
    before = by_content({"of": named}, root)["of"]
    for file in [*others, tmp_path / "weights"]:
        file.write_text("after")
    after = by_content({"of": named}, str(root))["of"]
    assert set(before) == {digest_of("before")}
    assert set(after) == {digest_of("after")}
    assert by_content(str(kept / "file"), root) == by_content(f"art/{kept.name}/file", "art") == f"/{kept.name}/file"
    shutil.copytree(root, tmp_path / "moved")
    assert by_content(str(tmp_path / "moved" / kept.name / "file"), tmp_path / "moved") == f"/{kept.name}/file"
    assert by_content([0.5, "gone.pt", str(kept), None], root) == [0.5, "gone.pt", str(kept), None]


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_copies_of_what_may_not_be_written_may_be(tmp_path: Path) -> None:
    source, target = tmp_path / "store", tmp_path / "run"
    (source / "samples").mkdir(parents=True)
    for name in ("result.json", "samples/1.png", "artifact.json"):
        (source / name).write_text(name)
    for path in [*source.rglob("*"), source]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    copy_into(source, target, ("artifact.json",))
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*")) == ["result.json", "samples", "samples/1.png"]
    assert all(path.stat().st_mode & 0o200 for path in [target, *target.rglob("*")])
    copy_into(source, target)  # over what is there
    assert (target / "artifact.json").read_text() == "artifact.json"


@pytest.mark.parametrize(
    ("left", "error", "stays"),
    [("metrics.csv", UserError, False), ("last.ckpt", UserError, True), ("metrics.csv", KeyboardInterrupt, True)],
)
def test_a_failed_build_leaves_only_what_it_can_go_on_from(
    left: str, error: type[BaseException], stays: bool, tmp_path: Path
) -> None:
    def build(folder: Path) -> None:
        (folder / left).write_text("x")
        raise error("no")

    store = Store(tmp_path)
    with pytest.raises(error):
        store.obtain("thing", ONE, build)
    assert bool(list(tmp_path.glob("*.unfinished"))) == stays
