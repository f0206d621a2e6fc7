"""What the dashboards get."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, composition
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from kd_lightning.errors import UserError
from kd_lightning.store.artifacts import Store
from kd_lightning.tracking.backends import Dashboards, watching, weights_and_biases
from kd_lightning.tracking.curves import Curves, KeepCurves

wandb = pytest.importorskip("wandb")
pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")


def records(path: Path) -> Iterator[Any]:
    """A .wandb file without a server: 32 KiB blocks of LevelDB's log, a protobuf in each record."""
    data, position, part = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last of its parts
            record = pb.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def read(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = {"config": {}, "history": [], "artifacts": []}
    for record in records(path):
        if (kind := record.WhichOneof("record_type")) == "run":
            run["meta"] = record.run
            updates = record.run.config.update
        else:
            updates = record.config.update if kind == "config" else []
        run["config"] |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in updates}
        if kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            run["artifacts"].append(record.request.log_artifact.artifact)
        if kind == "artifact":
            run["artifacts"].append(record.artifact)
        if kind == "history":
            run["history"].append(row := {})
            for item in record.history.item:
                *above, last = [item.key] if item.key else item.nested_key
                reduce(lambda node, key: node.setdefault(key, {}), above, row)[last] = json.loads(item.value_json)
    return run


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no files of W&B's outside the test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "KD_SWEEP"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.slow
def test_wandb_shows_maps_as_masks_that_can_be_switched(tmp_path: Path) -> None:
    logger = weights_and_biases(str(tmp_path), offline=True)
    images, maps = torch.full((2, 1, 4, 6), 90, dtype=torch.uint8), torch.zeros(2, 4, 6, dtype=torch.uint8)
    maps[1, 2, 3] = 1
    boards = Dashboards([logger])
    boards.masks("overlays", Image.new("RGB", (8, 8)), images, {"label": maps, "student": maps}, ["wall", "door"])
    logger.experiment.finish()
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = {key: value for row in read(file)["history"] for key, value in row.items()}
    assert rows["overlays"]["count"] == 1
    assert [set(masks) for masks in rows["overlays_masks"]["all_masks"]] == [{"label", "student"}] * 2
    path = rows["overlays_masks"]["all_masks"][1]["student"]["path"]
    with Image.open(file.parent / "files" / path) as mask:
        assert (mask.size, mask.getpixel((3, 2)), mask.getpixel((0, 0))) == ((6, 4), 1, 0)


@pytest.mark.slow
def test_wandb_without_a_key_keeps_everything_for_later(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KD_SWEEP", "my_sweep")
    result = tiny("logger=wandb", "teacher.eval_budget=10000")
    said = capsys.readouterr().err
    (file,) = result.folder.glob("wandb/offline-run-*/*.wandb")
    assert "no API key" in said
    assert f"wandb sync {file.parent}" in said
    assert not list(result.folder.glob("wandb/latest-run"))
    run = read(file)
    meta = run["meta"]
    assert (meta.project, meta.job_type, meta.run_group) == ("kd_lightning", "dafl", "my_sweep")
    assert meta.display_name.startswith("dafl-")
    assert "digits" in meta.tags
    assert run["config"]["method"]["latent"] == 8
    assert "main" not in run["config"]
    for row in run["history"]:
        if row.keys() & {"train/kd", "val/accuracy"}:
            assert {"seconds", "trainer/global_step", "epoch"} <= row.keys()
    keys = {key for row in run["history"] for key in row}
    assert {"train/kd", "val/accuracy", "val/agreement", "test/accuracy", "teacher/accuracy"} <= keys
    assert {"generated", "classes", "generated/classes", "generated/rarest"} <= keys
    assert {f"confusion/{name}{kind}" for name in ("labels", "teacher") for kind in ("", "_chart_table")} <= keys
    (table,) = (row["test/predictions"] for row in run["history"] if "test/predictions" in row)
    rows = json.loads((file.parent / "files" / table["path"]).read_text())
    assert rows["columns"] == ["image", "label", "student", "student confidence", "teacher", "teacher confidence"]
    assert len(rows["data"]) == 100
    accuracy = next(row["test/accuracy"] for row in run["history"] if "test/accuracy" in row)
    assert accuracy == pytest.approx(result["metrics"]["test/accuracy"])
    histogram = next(row["generated/classes"] for row in run["history"] if "generated/classes" in row)
    assert (sum(histogram["values"]), len(histogram["values"]), histogram["bins"][0]) == (16, 10, -0.5)
    captions = next(row["generated"] for row in run["history"] if "generated" in row)["captions"]
    assert all(0 < float(caption.split("(")[1].strip(")")) <= 1 for caption in captions)
    (artifact,) = (artifact for artifact in run["artifacts"] if artifact.type == "model")
    assert json.loads(artifact.metadata)["test/accuracy"] == result["metrics"]["test/accuracy"]
    assert {entry.path for entry in artifact.manifest.contents} == {"student.safetensors", "student.json"}
    pictures = list(file.parent.glob("files/media/images/**/*.png"))
    assert len(pictures) >= 20
    for picture in pictures:
        extremes = Image.open(picture).convert("L").getextrema()
        assert extremes[1] > 0, picture  # a float image would be black


@pytest.mark.slow
def test_a_dashboard_that_comes_after_the_fit_gets_its_curves_and_pictures(tiny: Callable[..., Any]) -> None:
    tiny("method=kd", "teacher.access=probs")
    result = tiny("method=kd", "teacher.access=probs", "logger=wandb_offline")
    (file,) = result.folder.glob("wandb/offline-run-*/*.wandb")
    run = read(file)
    assert {"train/response", "val/accuracy"} <= {key for row in run["history"] for key in row}
    asked = [row["queries"] for row in run["history"] if "train/response" in row]
    assert asked[-1] == result["cost"]["queries"] > 0
    assert not run["meta"].run_group


def test_wandb_that_cannot_be_reached_is_given_up_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[Any] = []

    def init(**settings: Any) -> Any:
        tried.append(settings)
        if settings.get("mode") != "offline":
            raise wandb.errors.CommError("connection refused\nand more")
        return FakeRun()

    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(wandb, "init", init)
    weights_and_biases(str(tmp_path), name="a", project="p", init_timeout=3)
    assert [t["settings"].init_timeout for t in tried] == [3, 3]
    assert [t["project"] for t in tried] == ["p", "p"]
    assert capsys.readouterr().err == "W&B cannot be used (connection refused): this run is recorded offline\n"


class FakeRun:
    def define_metric(self, *args: Any, **settings: Any) -> None:
        pass


def test_other_ranks_open_nothing_and_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("a run was opened"))
    logger = weights_and_biases(str(tmp_path), name="a")
    boards = Dashboards([logger])
    boards.numbers({"train/kd": 1.0}, 0)
    boards.images("generated", torch.zeros(1, 1, 4, 4, dtype=torch.uint8), ["0"], 0)
    boards.picture("classes", Image.new("RGB", (4, 4)), 0)
    curves = Curves(tmp_path, boards)
    curves.log_metrics({"train/kd": 1.0}, 0)
    curves.save()
    assert not list(tmp_path.iterdir())


def test_tensorboard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **settings: Any) -> Any:
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")

    monkeypatch.setattr("kd_lightning.tracking.backends.TensorBoardLogger", missing)
    loggers = [logger.build for logger in composition("logger=tensorboard").logger.values()]
    with (
        pytest.raises(UserError, match=r"pip install 'kd-lightning\[tensorboard\]'"),
        watching(loggers, {}, tmp_path, tmp_path),
    ):
        pass


def test_what_a_failed_run_logged_is_in_its_folder_and_holds_nothing_back(tmp_path: Path) -> None:
    class Board:
        def __init__(self, save_dir: str) -> None:
            (Path(save_dir) / "tensorboard").mkdir()
            (Path(save_dir) / "tensorboard" / "events").write_text("curves")

        def log_hyperparams(self, composition: Any) -> None: ...
        def finalize(self, status: str) -> None:
            assert status == "failed"

    def build(work: Path) -> None:
        with watching([Board], {}, work, folder):
            raise UserError("no")

    folder = tmp_path / "run"
    folder.mkdir()
    for _ in range(2):
        with pytest.raises(UserError):
            Store(tmp_path / "store").obtain("run", {}, build)
        assert (folder / "tensorboard" / "events").read_text() == "curves"
    assert not list((tmp_path / "store").glob("*.unfinished"))


@pytest.mark.slow
def test_tensorboard_beside_wandb(tiny: Callable[..., Any]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = tiny("logger=[tensorboard,wandb_offline]")
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/kd", "val/accuracy", "test/accuracy", "seconds"} <= set(tags["scalars"])
    assert {"generated", "classes", "confusion/labels", "confusion/teacher"} <= {
        t.partition("/image")[0] for t in tags["images"]
    }
    assert "generated/classes" in tags["histograms"]
    assert list(result.folder.glob("wandb/offline-run-*/*.wandb"))


def test_what_a_killed_run_had_drawn_is_told_again(tmp_path: Path) -> None:
    told: list[Any] = []

    class Board:
        def log_metrics(self, values: dict[str, float], step: int) -> None:
            told.append((step, values))

    cut = Curves(tmp_path)
    cut.log_metrics({"train/kd": 0.5, "epoch": 0}, step=4)
    other = Curves(tmp_path, Dashboards([Board()]).of("warm"))
    KeepCurves(other).load_state_dict(KeepCurves(cut).state_dict())
    ((step, values),) = told
    assert step == 4
    assert (values["warm/train/kd"], values["epoch"]) == (0.5, 0)
    assert "seconds" in values


@pytest.mark.parametrize("name", [None, "my_sweep"])
def test_group_is_the_sweep(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if name:
        monkeypatch.setenv("KD_SWEEP", name)
    assert composed("logger=wandb").logger.wandb.group == name
