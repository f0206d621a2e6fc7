"""What a fit shows: a bar or lines, curves, pictures, and whether the generator is alive."""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from doors import Fake, closed
from PIL import Image

from kd_lightning.core.tasks import Classification
from kd_lightning.data.batches import Batch
from kd_lightning.engine.callbacks import WatchGenerator, with_answers
from kd_lightning.engine.generator_health import class_counts, generator_health
from kd_lightning.engine.progress_bar import PhaseBar
from kd_lightning.inspection import curves
from kd_lightning.methods.base.distiller import Distiller, LastBatch
from kd_lightning.teachers.white_box import FrozenTeacher
from kd_lightning.tracking.curves import Curves, KeepCurves
from kd_lightning.tracking.image_grids import save_grid, to_uint8

Tiny = Callable[..., Outcome]


def test_health_closed_forms() -> None:
    half = torch.full((6, 1, 4, 4), 0.5)
    one_class = generator_health(half, torch.tensor([[50.0, 0, 0, 0]]).repeat(6, 1))
    assert one_class == pytest.approx({"entropy": 0.0, "confidence": 1.0, "spread": 0.0}, abs=1e-6)
    even = generator_health(half, torch.zeros(6, 4))
    assert even == pytest.approx({"entropy": 1.0, "confidence": 0.25, "spread": 0.0}, abs=1e-6)
    two = generator_health(torch.stack([half[0] * 0, half[0] * 2]), torch.eye(4)[:2] * 50)
    assert two == pytest.approx(
        {"entropy": math.log(2) / math.log(4), "confidence": 1.0, "spread": math.sqrt(0.5)}, abs=1e-6
    )


def scenes(*shares: float, pixels: int = 100) -> torch.Tensor:
    """Confident answers (4, C, 10, 10) whose classes have these shares of the pixels."""
    labels = torch.repeat_interleave(torch.arange(len(shares)), torch.tensor([round(s * pixels) for s in shares]))
    return 50 * torch.nn.functional.one_hot(labels, len(shares)).float().T.view(1, -1, 10, 10).repeat(4, 1, 1, 1)


CAMVID = (0.17, 0.25, 0.01, 0.26, 0.09, 0.11, 0.01, 0.02, 0.04, 0.02, 0.02)
"""Sky and road are a quarter each, others hardly anything."""
GROUND = (0.90, *[0.01] * 10)


def test_health_of_maps_counts_pixels() -> None:
    images = torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    quarter = generator_health(images, scenes(0.25, 0.25, 0.5, 0.0))
    entropy = (2 * 0.25 * math.log(4) + 0.5 * math.log(2)) / math.log(4)
    assert quarter == pytest.approx(
        {"entropy": entropy, "confidence": 1.0, "spread": float(images.std(0).mean())}, abs=1e-5
    )
    assert class_counts(scenes(0.25, 0.25, 0.5, 0.0)).tolist() == [100, 100, 200, 0]
    assert class_counts(torch.eye(3)[[0, 0, 2]]).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("answers", "warned"),
    [
        (scenes(*CAMVID), False),
        (scenes(*GROUND), False),
        (scenes(1.0, *[0.0] * 10), True),
        (scenes(0.99, 0.01, *[0.0] * 9), True),
        (50 * torch.eye(11)[[0, 0, 0, 1]], True),
    ],
    ids=["camvid", "nine tenths ground", "one class", "hardly a second", "images of two of eleven classes"],
)
def test_scenes_of_unequal_shares_are_no_collapse(answers, warned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Distiller, "rounds_done", 0)
    watch = WatchGenerator(tmp_path, every=1, patience=2)
    module = Distiller(student=torch.nn.Linear(1, 1), teacher=None, task=Classification(11))
    module.report = lambda scalars: None  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            module.seen = LastBatch(torch.rand(4, 3, 10, 10), answers)
            watch.on_train_batch_end(None, module, None, None, 0)  # type: ignore[arg-type]
    assert [str(w.message).startswith("the generator has collapsed") for w in caught] == [True] * warned
    assert sum(watch.counts) == 2 * answers.argmax(1).numel()


def test_a_generated_scene_is_captioned_by_its_commonest_class(tmp_path) -> None:
    captions, names = WatchGenerator(tmp_path, ["sky", "road", "car"])._worded(scenes(0.25, 0.6, 0.15))
    assert captions == ["road (0.60)"] * 4
    assert names == ["sky", "road", "car"]


def test_lines_without_a_terminal(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["teacher", "student"]
    assert "round 8/8" in said[1]
    assert len(said) == 2, "nothing is said twice"
    assert "rounds/s, kd " in said[1]
    assert "val/accuracy" in said[1]


def test_a_bar_with_a_terminal(tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    tiny()
    said = capsys.readouterr().err
    last = [line for line in re.split(r"[\r\n]+", said) if line.startswith("student")][-1]
    assert last.startswith("student val/accuracy 0.")
    assert len(last) <= 80
    assert "100%" in said
    assert "8/8" in said
    assert "student" in said


def test_a_silenced_rank_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = PhaseBar("teacher")
    bar.disable()

    class Trainer:
        num_training_batches, max_epochs, callback_metrics = 2, 1, {}

        class fit_loop:
            class epoch_loop:
                total_batch_idx = 1

    for hook in (bar.on_train_start, bar.on_train_end):
        hook(Trainer, None)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_curves_hold_what_was_noted_when_it_was_noted(tiny: Tiny) -> None:
    result = tiny("+method.log_every=2", "source.rounds=6")
    with (result.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == [0, 2, 4, 5, 6, 8, 10, 11]
    assert [row["round"] for row in rows if row["val/accuracy"]] == ["5", "11"]
    assert [row["round"] for row in rows if row["generated/entropy"]] == ["0", "6"]
    assert all(row["train/kd"] and row["train/act"] for row in rows)
    drawn = [row for row in rows if row["generated/rarest"]]
    assert [row["round"] for row in drawn] == ["5", "11"]
    assert all(0 <= float(r["generated/rarest"]) <= 0.1 <= float(r["generated/commonest"]) <= 1 for r in drawn)
    assert "queries" not in rows[0]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert {row["epoch"] for row in rows} == {"0.0", "1.0"}


def test_curves_survive_in_a_checkpoint(tmp_path: Path) -> None:
    one = Curves(tmp_path)
    one.log_metrics({"train/kd": 0.5, "epoch": 0}, step=0)
    one.log_metrics({"train/kd": 0.5, "epoch": 0}, step=1)  # a repetition
    one.log_metrics({"val/accuracy": 0.5, "epoch": 0}, step=1)
    kept = KeepCurves(one).state_dict()
    other = Curves(tmp_path)
    KeepCurves(other).load_state_dict(kept)
    other.log_metrics({"train/kd": 0.4, "epoch": 1}, step=2)
    other.log_metrics({"val/accuracy": 0.5, "epoch": 1}, step=3)
    assert [(row["round"], len(row)) for row in other.rows] == [(0, 4), (1, 5), (2, 4), (3, 4)]
    assert other.seconds >= kept["seconds"]
    other.finalize("success")
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header.split(",") == ["round", "seconds", "train/kd", "epoch", "val/accuracy"]


def test_grid_shows_every_image_enlarged_with_a_border(tmp_path: Path) -> None:
    images = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    images[11] = 100
    save_grid(images, tmp_path / "deep" / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "deep" / "grid.png").convert("RGB"))
    zoom, border = 6, 3
    cell = 8 * zoom + border
    assert picture.shape == (2 * cell + border, 10 * cell + border, 3)
    assert (picture[:border] == 255).all()
    assert (picture[cell + border : -border, cell + border : 2 * cell] == 100).all()


def test_names_of_rows_stand_level_with_their_images(tmp_path: Path) -> None:
    save_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), tmp_path / "plain.png", columns=2)
    save_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), tmp_path / "named.png", columns=2, rows=["a", "a long name"])
    plain, named = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("plain", "named"))
    added = named.shape[1] - plain.shape[1]
    assert (named[:, added:] == plain).all()
    inked = (named[:, :added] < 128).any(2).any(1).nonzero()[0]
    middle = plain.shape[0] / 2
    first, second = inked[inked < middle], inked[inked > middle]
    assert abs(first.mean() - middle / 2) < 5
    assert abs(second.mean() - 1.5 * middle) < 5


def test_pixels_outside_the_unit_interval_are_clamped() -> None:
    assert to_uint8(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(("entropy", "spread"), [(0.49, 0.5), (0.9, 0.019)])
def test_collapse_is_judged_by_looks_in_a_row(
    entropy: float, spread: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distiller, "rounds_done", 60)
    method = Distiller(student=torch.nn.Linear(1, 1), teacher=None, task=Classification(3))
    bad, good = {"entropy": entropy, "spread": spread}, {"entropy": 0.51, "spread": 0.021}
    watch = WatchGenerator(tmp_path, patience=3)
    assert [watch._judge(health, method) for health in (bad, bad, good, bad, bad)] == [None] * 5
    resumed = WatchGenerator(tmp_path, patience=3)
    resumed.load_state_dict(watch.state_dict())
    collapsed = resumed._judge(bad, method)
    assert "collapsed (round 60)" in str(collapsed)
    assert collapsed.remedy.startswith("Lower the generator's learning rate, raise")  # type: ignore[union-attr]


def test_equal_pictures_collapse_a_generator_only_when_they_are_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distiller, "rounds_done", 0)
    watch = WatchGenerator(tmp_path, every=1, patience=3)
    module = Distiller(student=torch.nn.Linear(1, 1), teacher=None, task=Classification(3))
    module.report = lambda scalars: None  # type: ignore[method-assign]
    for _ in range(2):
        module.seen = LastBatch(torch.zeros(3, 1, 4, 4), torch.eye(3))  # of a generator that has not learned yet
        for _ in range(10):
            watch.on_train_batch_end(None, module, None, None, 0)  # type: ignore[arg-type]
    module.seen = LastBatch(torch.zeros(3, 1, 4, 4), torch.eye(3))
    with pytest.warns(UserWarning, match="the generator has collapsed"):
        watch.on_train_batch_end(None, module, None, None, 0)  # type: ignore[arg-type]


def test_class_counts_are_those_since_the_last_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distiller, "rounds_done", 0)
    one_hot = torch.eye(3)
    watch = WatchGenerator(tmp_path, every=1)
    module = Distiller(student=torch.nn.Linear(1, 1), teacher=None, task=Classification(3))
    module.report = lambda scalars: None  # type: ignore[method-assign]
    for classes in ([0, 0, 2], [2, 2, 0]):
        module.seen = LastBatch(torch.rand(3, 1, 4, 4), one_hot[classes])
        watch.on_train_batch_end(None, module, None, None, 0)  # type: ignore[arg-type]
    assert watch.counts == [3, 0, 3]
    for _ in range(20):  # nothing new was shown
        watch.on_train_batch_end(None, module, None, None, 0)  # type: ignore[arg-type]
    assert watch.counts == [3, 0, 3]


def test_a_resumed_watch_judges_what_was_not_judged_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distiller, "rounds_done", 0)
    watch = WatchGenerator(tmp_path, every=2)
    module = Distiller(student=torch.nn.Linear(1, 1), teacher=None, task=Classification(3))
    module.report = lambda scalars: None  # type: ignore[method-assign]

    def after(resumed: bool, batch_idx: int) -> list[int]:
        seeing = WatchGenerator(tmp_path, every=2) if resumed else watch
        if resumed:
            seeing.load_state_dict(watch.state_dict())
            assert module.seen is not None
            module.seen = LastBatch(*module.seen)  # as a checkpoint gives it back
        seeing.on_train_batch_start(None, module, None, batch_idx)  # type: ignore[arg-type]
        seeing.on_train_batch_end(None, module, None, None, batch_idx)  # type: ignore[arg-type]
        return seeing.counts

    module.seen = LastBatch(torch.rand(3, 1, 4, 4), torch.eye(3)[[0, 0, 2]])
    assert after(False, 0) == [2, 0, 1]
    assert after(True, 2) == [2, 0, 1], "judged just before it stopped"
    module.seen = LastBatch(torch.rand(3, 1, 4, 4), torch.eye(3)[[2, 2, 0]])
    assert after(False, 1) == [2, 0, 1], "not looked at yet"
    assert after(True, 2) == [3, 0, 3]
    assert after(False, 2) == [3, 0, 3]
    after(False, 3)
    assert after(True, 4) == [3, 0, 3], "judged long before it stopped"


@pytest.mark.slow
def test_queries_are_an_axis_where_they_are_counted(tiny: Tiny) -> None:
    result = tiny("method=kd", "teacher.access=probs", "data.recipe.batch_size=320")
    with (result.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    asked = [int(float(row["queries"])) for row in rows]
    assert asked == sorted(asked)
    assert asked[0] == 320
    assert asked[-1] == result["cost"]["queries"] < 2 * 3 * 320, "the same image is asked about once"
    accuracy = curves(result.folder)["val/accuracy"]
    assert accuracy.queries is not None
    assert accuracy.queries.tolist()[-1] == result["cost"]["queries"]
    assert "queries" not in curves(result.folder)


def test_a_frozen_generators_images_are_looked_at_once_an_epoch_and_cost_no_query(tiny: Tiny) -> None:
    small = ("rdskd.source.rounds=3", "rdskd.trainer.max_epochs=1", "rdskd.method.batch_size=8")
    small += ("rdskd.method.latent=4", "rdskd.method.generator.ngf=4", "source.rounds=3", "source.batch_size=10")
    result = tiny("method=rdskd", *small)
    with (result.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows if row["generated/entropy"]] == ["2", "5"]
    assert {"generated_0001.png", "generated_0002.png"} <= {p.name for p in (result.folder / "samples").iterdir()}
    assert result["cost"]["teacher_images"] == result["cost"]["images_synthesised"] == 3 * 8 + 2 * 3 * 10


def test_only_synthetic_batches_are_looked_at(tiny: Tiny) -> None:
    assert not list((tiny("method=kd").folder / "samples").glob("*"))


def test_answers_come_with_the_batch_or_from_a_teacher_that_may_be_looked_into(tmp_path: Path) -> None:
    x, t = torch.rand(2, 1, 2, 2), torch.rand(2, 3)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    white = FrozenTeacher(net)
    paid = closed(Fake(), tmp_path)
    for teacher in (None, white, paid):
        seen = with_answers(Batch(x, None, t), teacher)
        assert seen is not None
        assert torch.equal(seen.teacher, t)
    looked_into = with_answers(Batch(x, None), white)
    assert looked_into is not None
    assert torch.equal(looked_into.teacher, net(x))
    assert with_answers(Batch(x, None), paid) is None
    assert with_answers(Batch(x, None), None) is None
    assert white.asked == paid.asked == 0
