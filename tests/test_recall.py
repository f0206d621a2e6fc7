"""A stored result is found without torch, and nothing old is found once anything it came from has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, composed

from kd_lightning.config.record import whole
from kd_lightning.results import recall
from kd_lightning.results.recall import circumstances, recalled, remember

NAMES = {"method": "kd", "data": "digits"}


def config(*overrides: str) -> dict[str, Any]:
    plain = whole(composed("method=kd", *overrides), NAMES)
    assert plain is not None
    return plain


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    return config()


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just now count as settled."""
    monkeypatch.setattr(recall, "FRESH", 0.0)


@pytest.fixture
def kept(tmp_path: Path, usual: dict[str, Any]) -> Path:
    """A run in a store, as far as it is read back."""
    run = tmp_path / "store" / "run-0123456789ab"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"status": "ok", "objective": 0.5}))
    meta = {"format_version": 1, "kind": "run", "files": {"result.json": (run / "result.json").stat().st_size}}
    (run / "artifact.json").write_text(json.dumps(meta))
    usual["artifacts"] = {"root": str(tmp_path / "store"), "reuse": True, "scope": "all"}
    return run


def test_what_is_remembered_is_found_while_it_is_whole(kept: Path, usual: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert recalled("key", usual, folder) is None
    assert not folder.exists()
    remember("key", usual, kept.name)
    assert recalled("other", usual, folder) is None
    found = recalled("key", usual, folder)
    assert found == {"status": "ok", "objective": 0.5, "run_kept": kept.name, "stored": True}
    assert json.loads((folder / "result.json").read_text()) == found
    assert (folder / ".hydra" / "config.yaml").is_file()
    (kept / "result.json").write_text("{}")
    assert recalled("key", usual, folder) is None, "it is damaged"


def test_a_note_leads_to_runs_of_its_own_store_only(kept: Path, usual: dict[str, Any], tmp_path: Path) -> None:
    kept.rename(tmp_path / kept.name)
    remember("key", usual, f"../{kept.name}")
    assert recalled("key", usual, tmp_path / "folder") is None


def test_it_depends_on_every_setting_the_folder_and_the_devices(
    usual: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = circumstances(usual)
    assert first is not None
    assert circumstances(usual) == first
    assert circumstances({**usual, "seed": 1}) not in (None, first)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    without_gpus = circumstances(usual)
    assert without_gpus not in (None, first)
    monkeypatch.chdir(tmp_path)
    assert circumstances(usual) not in (None, without_gpus)


def test_the_librarys_own_files_and_versions_belong_to_it(
    usual: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_files: None
) -> None:
    package = tmp_path / "kd_lightning"
    (package / "results").mkdir(parents=True)
    (package / "loss.py").write_text("x = 1\n")
    monkeypatch.setattr(recall, "__file__", str(package / "results" / "recall.py"))
    first = circumstances(usual)
    (package / "loss.py").write_text("x = 2\n")
    edited = circumstances(usual)
    assert None not in (first, edited)
    assert edited != first
    monkeypatch.setattr(recall.metadata, "version", lambda name: "2")
    assert circumstances(usual) not in (None, edited)


def rewritten(file: Path) -> None:
    """Other content of the same length, with the same time of change."""
    before = file.stat()
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", ["rewritten", "added", "removed", "linked"])
def test_files_that_the_configuration_names_belong_to_it(
    change: str, usual: dict[str, Any], tmp_path: Path, old_files: None
) -> None:
    images = tmp_path / "data" / "train" / "cat"
    images.mkdir(parents=True)
    (images / "1.png").write_bytes(b"one")
    (tmp_path / "elsewhere.png").write_bytes(b"two")
    (images / "2.png").symlink_to(tmp_path / "elsewhere.png")
    load = {"_target_": "kd_lightning.data.datasets.folder.load", "root": str(tmp_path / "data")}
    own = {**usual, "data": {"load": load}}
    first = circumstances(own)
    assert first is not None
    changes: dict[str, Callable[[], object]] = {
        "rewritten": lambda: rewritten(images / "1.png"),
        "added": lambda: (images / "3.png").write_bytes(b"three"),
        "removed": lambda: (images / "1.png").unlink(),
        "linked": lambda: rewritten(tmp_path / "elsewhere.png"),
    }
    changes[change]()
    assert circumstances(own) not in (None, first)


def test_a_file_that_changed_just_now_may_change_again(usual: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "student.safetensors").write_bytes(b"weights")
    assert circumstances({**usual, "init": str(tmp_path / "student.safetensors")}) is None


@pytest.mark.parametrize(
    "node",
    [
        {"student": {"_target_": "own_net.OwnNet"}},
        {"metrics": {"mine": {"_target_": "torchvision.ops.box_iou", "_partial_": True}}},
        {"teacher": {"net": {"_target_": "kd_lightning.networks.foreign.timm", "name": "resnet18"}}},
        {"teacher": {"client": {"_target_": "kd_lightning.teachers.remote.http.HttpTeacher"}}},
        {"data": {"load": {"_target_": "kd_lightning.data.datasets.table.load", "table": "list.csv"}}},
        {"source": {"load": [{"_target_": "kd_lightning.data.datasets.utkface.load"}]}},
        {"artifacts": {"root": None, "reuse": False, "scope": "student"}},
    ],
)
def test_what_runs_code_or_reads_files_of_others_is_never_recalled(node: dict[str, Any], usual: dict[str, Any]) -> None:
    assert circumstances({**usual, **node}) is None


AGAIN = """
    import sys

    import hydra._internal.config_loader_impl as loader

    made, whole = [], loader.ConfigLoaderImpl._load_configuration_impl
    loader.ConfigLoaderImpl._load_configuration_impl = lambda *args, **kwargs: made.append(1) or whole(*args, **kwargs)
    from kd_lightning.cli.main import main

    sys.argv = ["kd-lightning", *{words!r}]
    main()
    heavy = {{"torch", "lightning", "numpy", "torchvision"}} & set(sys.modules)
    assert bool(heavy) == {anew}, heavy
    assert len(made) <= 3, len(made)
"""


@pytest.mark.slow
def test_a_command_given_again_prints_the_same_without_torch(tmp_path: Path) -> None:
    def command(*words: str, anew: bool) -> str:
        program = textwrap.dedent(AGAIN.format(words=words, anew=anew))
        own = {**os.environ, "KD_ARTIFACTS": str(tmp_path / "store")}
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("\n\nwrote")[0]

    words = (*TINY, "method=kd", "trainer.max_epochs=1", "controls=none")
    first = command(*words, "hydra.run.dir=first", anew=True)
    again = command(*words, "hydra.run.dir=again", anew=False)
    assert again.startswith("This composition was run before")
    assert again.partition("\n")[2] == first
    for file in ("result.json", "student.safetensors", ".hydra/config.yaml", "metrics.csv"):
        one, two = ((tmp_path / run / file).read_text("latin-1") for run in ("first", "again"))
        assert one.replace('"stored": false', '"stored": true') == two, file
    store = tmp_path / "store"
    next(store.glob("run-*/result.json")).unlink()
    assert not command(*words, "hydra.run.dir=third", anew=True).startswith("This composition was run before")
