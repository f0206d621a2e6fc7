"""Label maps through the whole house: a run, its result and pictures, and every command that reads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composition, tiny_run
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from kd_lightning import inspection
from kd_lightning.cli import boundary, evaluate, predict
from kd_lightning.cli import export as export_cli
from kd_lightning.cli.summary import summary
from kd_lightning.core.palette import coloured
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.dataset import Split
from kd_lightning.data.datasets import dense_digits
from kd_lightning.data.datasets.scenes import folder as scenes
from kd_lightning.errors import ConfigError, DataError, TeacherError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.segmenters.small import SmallSegmenter
from kd_lightning.results.run_loader import data_of, open_run
from kd_lightning.results.student_files import load_student
from kd_lightning.results.table import collect, fold, headline, render
from kd_lightning.run.teacher_check import diagnose

DATA = ("data=dense_digits", "data.train=120", "data.val=12", "data.test=20")
RUN = (
    "method=kd",
    *DATA,
    "teacher=small_segmenter_narrow",
    "student=small_segmenter_narrow",
    "data.recipe.batch_size=24",
    "data.recipe.epochs=4",
    "trainer.max_epochs=4",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a teacher of maps, with the files that Hydra would have left."""
    folder, root = tmp_path_factory.mktemp("maps") / "run", tmp_path_factory.mktemp("maps_store")
    tiny_run(folder, *RUN, root=root)
    OmegaConf.save(OmegaConf.create(["method=kd", "seed=0"]), folder / ".hydra" / "overrides.yaml")
    choices = {"hydra": {"runtime": {"choices": {"method": "kd", "data": "dense_digits"}}}}
    OmegaConf.save(OmegaConf.create(choices), folder / ".hydra" / "hydra.yaml")
    return folder


@pytest.fixture(scope="module")
def test_part() -> Any:
    return dense_digits.load(task=Segmentation(11), train=120, val=12, test=20).test


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def masks(run: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        return load_student(run)(images.float() / 255).argmax(1)


def test_the_result_has_the_means_over_pixels(run: Path, test_part: Any) -> None:
    result, said, true = result_of(run), masks(run, test_part.images), test_part.labels.long()
    right = (said == true)[true != 255].float().mean().item()
    assert result["metrics"]["test/pixel_accuracy"] == pytest.approx(right, abs=1e-6)
    ious = [
        float(((said == c) & (true == c)).sum() / (((said == c) & (true != 255)) | (true == c)).sum())
        for c in range(11)
    ]
    assert result["metrics"]["test/miou"] == pytest.approx(np.nanmean(ious), abs=1e-6)
    assert result["objective"] == result["metrics"]["test/miou"]
    assert result["iou"]["test"] == pytest.approx(dict(zip(("ground", *map(str, range(10))), ious, strict=True)))
    assert set(result["iou"]) == {"test", "teacher"}
    assert 0 < result["metrics"]["test/agreement"] <= 1
    assert result["task"] == Segmentation(11).described()
    assert headline(result) == f"miou {result['objective']:.4f}"
    assert "miou" in summary(result)
    assert "miou" in render(fold(collect([run])), "terminal")


def test_learning_shows_in_the_curves(run: Path) -> None:
    curve = inspection.curves(run)
    assert {"val/miou", "val/pixel_accuracy", "val/agreement"} <= set(curve)
    assert curve["train/label"].values[-1] < curve["train/label"].values[0]


def test_pictures_show_maps_by_the_names_of_the_classes(run: Path) -> None:
    pictures = {file.name for file in (run / "plots").iterdir()}
    assert pictures == {"overlays.png", "iou.png", "confusion_labels.png", "confusion_teacher.png"}
    with Image.open(run / "plots" / "overlays.png") as picture:
        width, height = picture.size
    assert width > 4 * 160  # image, label, teacher, student
    assert height > 6 * 100


def test_a_card_tells_the_task_and_builds_the_student(run: Path) -> None:
    student = load_student(run)
    assert student.card["task"] == {"kind": "segmentation", "num_classes": 11, "void": 255}
    assert student.card["image_shape"] == [1, 32, 48]
    assert student(torch.rand(2, 1, 19, 27)).shape == (2, 11, 19, 27)  # any height and width


def test_the_same_data_give_the_runs_own_iou(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), *DATA]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "20 test images of dense_digits"
    assert lines[2].split() == ["class", "pixels", "IoU"]
    ground = result_of(run)["iou"]["test"]["ground"]
    assert lines[4].split()[0] == "ground"
    assert lines[4].split()[2] == f"{ground:.4f}"
    assert lines[-1].split()[0] == "mean"
    assert lines[-1].split()[2] == f"{result_of(run)['objective']:.4f}"


def test_a_student_of_maps_is_not_measured_on_classes_nor_the_reverse(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run), "data=digits", "data.num_classes=10"]) == 2
    assert "a class for every pixel" in capsys.readouterr().err
    assert evaluate.main([str(finished), *DATA]) == 2
    assert "the student says classes, the labels of these data are maps of classes" in capsys.readouterr().err


def test_masks_of_files_are_as_large_as_they_are_and_readable(
    run: Path, tmp_path: Path, test_part: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(test_part.images[i, 0].numpy()).save(tmp_path / "images" / f"{i}.png")
    Image.new("RGB", (101, 37), (90, 90, 90)).save(tmp_path / "images" / "odd.png")
    (tmp_path / "images" / "bad.png").write_text("no image")
    assert predict.main([str(run), str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]) == 2
    told = capsys.readouterr()
    assert "cannot decode" in told.err
    assert "wrote 3 maps" in told.out
    expected = masks(run, test_part.images[1:2])[0].to(torch.uint8)
    with Image.open(tmp_path / "masks" / "1.png") as written:
        assert written.mode == "P"
        assert torch.equal(torch.from_numpy(np.array(written)), expected)
        assert torch.equal(torch.from_numpy(np.array(written.convert("RGB"))).movedim(2, 0), coloured(expected, 11))
    with Image.open(tmp_path / "masks" / "odd.png") as odd:
        assert odd.size == (101, 37)
    # such masks are labels for data=segmentation_folder
    (tmp_path / "images" / "bad.png").unlink()
    (tmp_path / "names").write_text("\n".join(load_student(run).card["classes"]))
    how = {"size": (32, 48), "channels": 1, "val": 0, "test": 0}
    with pytest.warns(UserWarning, match="no pixel"):
        found = scenes.load(task=Segmentation(11), root=tmp_path, names=tmp_path / "names", **how).train
    assert torch.equal(found.labels[1], expected)  # type: ignore[union-attr]


def test_a_student_of_maps_says_where_they_go(
    run: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "same.png")
    assert predict.main([str(run), str(tmp_path)]) == 2
    assert "say where its maps go with --masks DIR" in capsys.readouterr().err
    assert predict.main([str(finished), str(tmp_path), "--masks", str(tmp_path / "masks")]) == 2
    assert "this student answers once for an image" in capsys.readouterr().err
    assert predict.main([str(run), str(tmp_path), "--masks", str(tmp_path / "masks")]) == 2
    assert "would both be same.png: predict one folder at a time" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_takes_any_size(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "student.onnx"
    assert export_cli.main([str(run), "--onnx", str(file)]) == 0
    assert "images (N, 1, H, W) in [0, 1] -> logits (N, 11, H, W)" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    x = torch.rand(3, 1, 41, 30, generator=torch.Generator().manual_seed(0))
    answered = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(answered, load_student(run)(x), atol=1e-4, rtol=1e-3)


def test_there_is_no_boundary_of_maps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.main([str(run)]) == 2
    said = capsys.readouterr().err
    assert "its labels are maps of classes" in said
    assert said.count("\n") == 1


def test_a_notebook_gets_masks_and_overlays(run: Path, test_part: Any) -> None:
    opened = open_run(run)
    assert opened.classes[0] == "ground"
    split = data_of(opened).test
    assert split is not None
    found = inspection.masks(opened.student, split.images)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), masks(run, test_part.images))
    picture = inspection.overlays(split.images[:2], {"label": split.labels[:2], "student": found[:2]}, opened.classes)
    assert picture.size[0] > 3 * 160


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as said:
        composition(*overrides)
    return str(said.value)


@pytest.mark.slow
def test_compositions_that_cannot_be_are_refused_before_data_are_read() -> None:
    maps = ("data=dense_digits", "teacher=small_segmenter", "student=small_segmenter_narrow", "method=kd")
    composition(*maps)
    assert "student: SmallConvNet is made for classes or numbers, but the labels of these data are maps" in refused(
        *maps, "student=small_conv"
    ).replace(" as it is set", "")
    assert "method: Dafl as it is set is made for classes" in refused(*maps, "method=dafl")
    assert "source: FewShot as it is set is made for classes" in refused(*maps, "source=few_shot")
    assert "is only had whole: set teacher.access=white" in refused(*maps, "teacher.access=logits")
    assert "SmallSegmenter is made for maps of classes, but the labels of these data are classes" in refused(
        "data=digits", "method=kd", "student=small_segmenter"
    )
    assert "metrics.boundary" in refused(*maps, "metrics=boundary")


class Painter(torch.nn.Module):
    """Knows which pixels are light, if they come as they are: in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        light = (x > 0.5) if x.amin() >= 0 and x.amax() <= 1 else x > 9
        return torch.cat([~light, light], dim=1).float()


def test_a_good_teacher_of_maps_passes_and_others_are_told_why() -> None:
    images = torch.randint(256, (40, 1, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split, task = Split(images, (images[:, 0] > 127).to(torch.uint8)), Segmentation(2)
    good = Normalized(Painter(), mean=[0.0], std=[1.0])
    assert diagnose(good, split, task=task) == 1.0
    off = Normalized(Painter(), mean=[0.5], std=[0.5])
    with pytest.raises(TeacherError, match=r"reaches a mean IoU of 0\.2.*but .*1\.000 with images left in \[0, 1\]"):
        diagnose(off, split, task=task)
    blind = Normalized(SmallSegmenter(num_classes=2, in_channels=1, widths=[2] * 5), mean=[0.5], std=[0.5])
    for parameter in blind.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(TeacherError, match=r"always naming the commonest class reaches a mean IoU of 0\.2"):
        diagnose(blind, split, task=task)


def test_the_number_of_classes_is_that_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.num_classes=12, but dense_digits has 11 classes"):
        tiny_run(tmp_path / "run", *RUN, "data.num_classes=12", "data.task.num_classes=11", root=tmp_path / "store")
