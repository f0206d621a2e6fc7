"""Numbers through the whole house: a run, its result, and every command that reads one."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composition, tiny_run
from methods.toy import adam, trainer
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from kd_lightning.cli import evaluate, predict
from kd_lightning.cli import export as export_cli
from kd_lightning.cli.summary import summary
from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.datasets import rotated_digits
from kd_lightning.data.load import dataset_digest
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.engine.callbacks import BINS, WatchGenerator
from kd_lightning.engine.data import load_data
from kd_lightning.engine.generator_health import generator_health
from kd_lightning.errors import DataError, TeacherError, UserError
from kd_lightning.losses.soft_labels import imitation
from kd_lightning.methods.base.distiller import LastBatch
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results.onnx_export import _onnx_metadata, answer_name
from kd_lightning.results.run_loader import load_teacher, open_run
from kd_lightning.results.student_files import load_student
from kd_lightning.results.table import collect, fold, headline, render
from kd_lightning.run.teacher_check import diagnose
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.white_box import FrozenTeacher

DATA = ("data=rotated_digits", "data.base=digits", "data.size=8", "data.train=900", "data.val=100", "data.test=200")
RUN = (
    "method=kd",
    *DATA,
    "student=small_conv",
    "data.recipe.batch_size=50",
    "data.recipe.epochs=6",
    "trainer.max_epochs=6",
)
TASK = Regression(low=-60, high=60, unit="degrees")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a teacher of angles, with the files that Hydra would have left."""
    folder, root = tmp_path_factory.mktemp("angles") / "run", tmp_path_factory.mktemp("angles_store")
    tiny_run(folder, *RUN, root=root)
    OmegaConf.save(OmegaConf.create(["method=kd", "seed=0"]), folder / ".hydra" / "overrides.yaml")
    choices = {"hydra": {"runtime": {"choices": {"method": "kd", "data": "rotated_digits"}}}}
    OmegaConf.save(OmegaConf.create(choices), folder / ".hydra" / "hydra.yaml")
    return folder


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def measured_on() -> Split:
    test = rotated_digits.load(task=TASK, base="digits", size=8, train=900, val=100, test=200).test
    assert test is not None
    return test


def numbers(net: nn.Module, split: Split) -> Tensor:
    with torch.no_grad():
        return net(split.images.float() / 255)[:, 0].clamp(0, 1) * 120 - 60


def test_a_run_is_judged_in_degrees(run: Path) -> None:
    result, split = result_of(run), measured_on()
    metrics = result["metrics"]
    assert set(metrics) == {"test/mae", "test/agreement", "teacher/mae"}
    student, teacher = numbers(load_student(run), split), numbers(load_teacher(open_run(run)), split)
    assert metrics["test/mae"] == pytest.approx(float((student - split.labels).abs().mean()), rel=1e-4)
    assert metrics["teacher/mae"] == pytest.approx(float((teacher - split.labels).abs().mean()), rel=1e-4)
    assert metrics["test/agreement"] == pytest.approx(float((student - teacher).abs().mean()), rel=1e-4)
    guess = float((split.labels - split.labels.median()).abs().mean())
    assert metrics["teacher/mae"] < 0.8 * guess, "the teacher has learned something"
    assert metrics["test/mae"] < 0.8 * guess
    assert metrics["test/agreement"] < metrics["test/mae"]
    assert result["objective"] == metrics["test/mae"]
    assert result["task"] == TASK.described()
    assert {p.name for p in (run / "plots").iterdir()} == {"numbers_labels.png", "numbers_teacher.png"}
    with (run / "metrics.csv").open() as file:
        assert {"val/mae", "val/agreement", "train/label", "train/response"} <= set(next(csv.reader(file)))


def test_tables_name_the_unit_and_which_way_is_better(run: Path) -> None:
    result = result_of(run)
    said = summary(result)
    assert "mae (degrees)    agreement (degrees)" in said
    assert headline(result) == f"mae {result['objective']:.4f} degrees"
    table = fold(collect([run]))
    assert {"mae (degrees)", "agreement (degrees)", "teacher"} <= set(table.headers)
    assert "absolute differences in degrees, less is better" in render(table)


def test_predictions_are_numbers_in_the_unit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = measured_on()
    for i in range(5):
        Image.fromarray(split.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_text("no image")
    assert predict.main([str(run), str(tmp_path), "--csv", str(tmp_path / "out.csv")]) == 2
    with (tmp_path / "out.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "degrees"]
    expected = numbers(load_student(run), split)[:5].tolist()
    assert [float(number) for _, number in rows] == pytest.approx(expected, abs=1e-3)
    capsys.readouterr()
    assert predict.main([str(run), str(tmp_path / "0.png")]) == 0
    assert capsys.readouterr().out.split() == [f"{expected[0]:.6g}", "degrees", str(tmp_path / "0.png")]


@pytest.mark.slow
def test_the_same_data_give_the_runs_own_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [o for o in DATA if not o.startswith("data.size")]
    assert evaluate.main([str(run), *overrides]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "200 test images of rotated_digits"
    assert lines[2].split("  ")[0] == "degrees"
    assert lines[2].endswith("mae (degrees)")
    assert lines[-1].split() == ["all", "200", f"{result_of(run)['objective']:.4f}"]
    student = load_student(run)
    found = evaluate.evaluate_on(student, evaluate.compose_data(overrides, student.card))
    assert next(iter(found.parts)) == "-60 to -45"
    whole = sum(n * error for n, error in found.parts.values() if error is not None) / found.n
    assert whole == pytest.approx(found.score, rel=1e-4)
    assert sum(n for n, _ in found.parts.values()) == 200


def test_a_student_of_numbers_is_not_measured_on_classes_nor_the_reverse(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run), "data=digits"]) == 2
    assert "the student says degrees, the labels of these data are classes" in capsys.readouterr().err
    assert evaluate.main([str(finished), "data=rotated_digits", "data.base=digits"]) == 2
    assert "the student says classes, the labels of these data are degrees" in capsys.readouterr().err


def test_taken_away_it_says_what_its_answers_mean(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    assert export_cli.main([str(run), "--safetensors", str(file)]) == 0
    card = load_student(file).card
    assert (card["task"], card["classes"], answer_name(card)) == (TASK.described(), [], "places")
    metadata = _onnx_metadata(card)
    assert json.loads(metadata["task"]) == TASK.described()
    assert json.loads(metadata["mae"]) == result_of(run)["objective"]
    assert "accuracy" not in metadata


def test_what_is_about_classes_says_so(run: Path) -> None:
    opened = open_run(run)
    assert opened.task.unit == "degrees"
    with pytest.raises(UserError, match=r"labels are numbers \(degrees\), not classes; run\.task\.numbers"):
        opened.classes  # noqa: B018


def test_the_range_is_part_of_what_data_are() -> None:
    wider = Regression(low=-90, high=90, unit="degrees")
    same, other = (Dataset("toy", [], measured_on(), None, None, "none", "none", task=task) for task in (TASK, wider))
    assert dataset_digest(same) != dataset_digest(other)
    with pytest.raises(DataError, match=r"toy/test: label .* outside 0 to 7 metres"):
        Dataset("toy", [], None, None, measured_on(), "none", "none", task=METRES)


def test_a_network_of_numbers_has_one_output(store: Path) -> None:
    data = composition("method=kd", *DATA).data
    with pytest.raises(DataError, match=r"data\.num_classes=3, but rotated_digits has numbers .*num_classes=1"):
        load_data(replace(data, num_classes=3), Store(store))


def test_a_teacher_that_only_answers_tells_its_number(tmp_path: Path) -> None:
    asked = ("source=queried", "teacher.access=logits", "teacher.budget=900", "teacher.eval_budget=300")
    result = tiny_run(tmp_path / "run", "method=kd", *DATA, *asked, root=tmp_path / "store")
    assert result["metrics"]["teacher/mae"] is not None
    assert result["metrics"]["test/agreement"] is not None
    assert result["cost"]["queries"] == 900


class Bar(nn.Module):
    """Knows where the bright column is, if pixels come as they are: in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        right = x.amin() >= 0 and x.amax() <= 1
        return (x.mean((1, 2)) if right else torch.ones(len(x), 8)).argmax(1, keepdim=True) / 7


def bars(n: int, seed: int = 0) -> Split:
    """Images with one bright column of eight, 0 to 7 metres from the left."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (n,), generator=rng)
    x = torch.randint(0, 100, (n, 1, 8, 8), generator=rng)
    x[torch.arange(n), :, :, labels] += 150
    return Split(x.to(torch.uint8), labels.float())


METRES = Regression(low=0, high=7, unit="metres")


def bar_teacher(**statistics: Any) -> Normalized:
    return Normalized(Bar(), **{"mean": [0.0], "std": [1.0]} | statistics)


@pytest.mark.parametrize(("sign", "solves"), [(1.0, True), (-1.0, False)])
def test_a_student_learns_numbers_from_the_teachers_answers_alone(sign: float, solves: bool) -> None:
    torch.manual_seed(0)
    student = Normalized(SmallConvNet(num_classes=1, widths=(8, 16), grid=4), mean=[0.3], std=[0.3])
    loss = lambda s, t: sign * imitation(s, t, temperature=4.0)  # noqa: E731
    terms = {"response": {"weight": 1.0, "loss": loss}}
    method = Distill(
        student=student, teacher=FrozenTeacher(bar_teacher()), task=METRES, label=0.0, terms=terms,
        optimizer=partial(adam, lr=1e-2),
    )  # fmt: skip
    method.train()
    loader = TensorLoader(bars(512).images, None, batch_size=64, shuffle=True)
    trainer(8).fit(method, Images(loader, None))
    unseen = bars(256, seed=1)
    with torch.no_grad():
        off = float((METRES.numbers(student.eval()(unseen.images.float() / 255)) - unseen.labels).abs().mean())
    assert (off < 0.7) == solves, off


def test_a_good_teacher_of_numbers_passes_and_others_are_told_why() -> None:
    split = bars(400)
    assert diagnose(bar_teacher(), split, task=METRES) == 1.0
    with pytest.raises(
        TeacherError, match=r"is [\d.]+ metres off .*but is 0 metres off with images left in \[0, 1\]: tea"
    ):
        diagnose(bar_teacher(mean=[0.5], std=[0.25]), split, task=METRES)
    torch.manual_seed(0)
    fresh = Normalized(SmallConvNet(num_classes=1, widths=(4,)), mean=[0.3], std=[0.3])
    with pytest.raises(TeacherError, match=r"always naming their median is .* metres off: nothing can be learned"):
        diagnose(fresh, split, task=METRES)


def test_generated_images_are_captioned_and_counted_by_number(tmp_path: Path) -> None:
    class Board:
        def __init__(self) -> None:
            self.shown: dict[str, Any] = {}

        def images(self, key: str, images: Tensor, captions: list[str], step: int) -> None:
            self.shown[key] = captions

        def picture(self, key: str, picture: Any, step: int) -> None:
            self.shown[key] = picture

        def class_counts(self, key: str, counts: Tensor, step: int) -> None:
            self.shown[key] = counts.tolist()

    class Method:
        rounds_done = 3
        seen = LastBatch(torch.rand(4, 1, 8, 8), torch.tensor([[0.0], [0.5], [0.999], [1.2]]))

        def report(self, scalars: dict[str, float]) -> None:
            self.scalars = scalars

    board, method = Board(), Method()
    watch = WatchGenerator(tmp_path, [], board, task=TASK)  # type: ignore[arg-type]
    watch.counts = watch._counted(method.seen.teacher).tolist()
    assert watch.counts == [1, *[0] * 11, 1, *[0] * 10, 2]
    assert len(watch.counts) == BINS
    watch._draw(method, "0001")  # type: ignore[arg-type]
    assert board.shown["generated"] == ["-60 degrees", "0 degrees", "59.88 degrees", "60 degrees"]
    assert (tmp_path / "samples" / "classes_0001.png").is_file()
    health = generator_health(method.seen.images, method.seen.teacher, numbers=TASK)
    assert set(health) == {"mean", "deviation", "spread"}
    assert health["mean"] == pytest.approx((-60 + 0 + 59.88 + 60) / 4, abs=1e-3)
