"""Distillation in one call, for whoever has a teacher in memory and no wish for a command line."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kd_lightning
from kd_lightning import api, inspection
from kd_lightning.data.datasets.digits import load as load_digits
from kd_lightning.data.datasets.in_memory import split_of
from kd_lightning.errors import UserError
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.weights import load_weights
from kd_lightning.results.student_files import load_student
from kd_lightning.results.table import collect

TINY: dict[str, Any] = {
    "num_classes": 10,
    "image": (1, 8, 8),
    "trainer__max_epochs": 2,
    "trainer__accelerator": "cpu",
    "source__rounds": 4,
    "method__batch_size": 16,
    "method__latent": 8,
    "method__generator__ngf": 4,
}
MEAN, STD = [0.3053], [0.3761]


@pytest.fixture
def teacher(teacher_file: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Knows the digits when they are normalised."""
    monkeypatch.chdir(tmp_path)
    net = SmallConvNet(widths=(32, 64, 128), num_classes=10)
    wrapped = api.Student(net, mean=MEAN, std=STD)
    load_weights(wrapped, teacher_file)
    return net


def digits() -> tuple[Tensor, Tensor]:
    test = load_digits().test
    assert test is not None
    return test.images, test.labels


def test_a_teacher_in_memory_becomes_a_student(teacher: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    before = copy.deepcopy(teacher.train())
    student = kd_lightning.distill(teacher, **TINY, mean=MEAN, std=STD, data=digits())
    assert student(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert not student.training
    metrics = student.card["metrics"]
    assert metrics["teacher/accuracy"] > 0.9, "the teacher was asked in its own terms"
    assert 0 <= metrics["test/accuracy"] <= 1
    assert student.card["mean"] == MEAN
    assert "student: round 8/8" in capsys.readouterr().err
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    for name, value in before.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name])
    assert not api._HELD


@pytest.mark.slow
def test_it_learns(teacher: nn.Module) -> None:
    more = TINY | {"trainer__max_epochs": 15, "source__rounds": 10, "method__batch_size": 128, "method__latent": 32}
    more |= {"method__generator__ngf": 16, "method__optimizer__lr": 0.05}
    student = kd_lightning.distill(teacher, method="dfad", **more, mean=MEAN, std=STD, data=digits())
    assert student.card["metrics"]["test/accuracy"] > 0.6


def test_without_statistics_the_teacher_sees_images_as_they_are(teacher: nn.Module) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - MEAN[0]) / STD[0])

    student = kd_lightning.distill(Own(), **TINY, data=digits())
    assert student.card["metrics"]["teacher/accuracy"] > 0.9
    assert student.card["mean"] == [0.5]


def test_no_data_at_all(teacher: nn.Module) -> None:
    student = kd_lightning.distill(teacher, **TINY, mean=MEAN, std=STD, classes=[f"digit {i}" for i in range(10)])
    assert student.card["metrics"]["test/accuracy"] is None
    assert student.card["classes"][3] == "digit 3"


def test_a_network_of_the_users_own_is_copied_and_trained(teacher: nn.Module) -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = own[1].weight.detach().clone()
    student = kd_lightning.distill(teacher, student=own, **TINY, mean=MEAN, std=STD)
    assert torch.equal(own[1].weight, before)
    trained = student.state_dict()["net.1.weight"]
    assert not torch.equal(trained, before)
    again = load_student(student.folder, network=copy.deepcopy(own))
    assert torch.equal(again.state_dict()["net.1.weight"], trained)
    with pytest.raises(UserError, match="handed over in memory"):
        load_student(student.folder)


@pytest.mark.slow
def test_a_network_of_a_folder_of_the_users_own(teacher: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "my_conf" / "network").mkdir(parents=True)
    (tmp_path / "my_conf" / "network" / "mine.yaml").write_text("defaults: [small_conv]\nwidths: [5, 6]\n")
    student = kd_lightning.distill(teacher, student="mine", config_dir=tmp_path / "my_conf", **TINY, mean=MEAN, std=STD)
    assert student.card["network"]["widths"] == [5, 6]
    with pytest.raises(UserError, match=r"there is no student called mine"):
        kd_lightning.distill(teacher, student="mine", **TINY)


def test_the_same_call_is_answered_from_what_is_kept(teacher: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    first = kd_lightning.distill(teacher, **TINY, mean=MEAN, std=STD)
    again = kd_lightning.distill(copy.deepcopy(teacher), **TINY, mean=MEAN, std=STD)
    assert "This composition was run before" in capsys.readouterr().out
    assert first.folder != again.folder
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with torch.no_grad():
        next(teacher.parameters()).mul_(1.01)
    kd_lightning.distill(teacher, **TINY, mean=MEAN, std=STD)
    assert "was run before" not in capsys.readouterr().out


def test_the_run_folder_serves_the_other_commands(teacher: nn.Module, tmp_path: Path) -> None:
    student = kd_lightning.distill(teacher, **TINY, seed=3, mean=MEAN, std=STD, folder=tmp_path / "mine")
    assert student.folder == tmp_path / "mine"
    (run,) = collect([tmp_path / "mine"])
    assert (run.status, run.setting("method"), run.setting("seed")) == ("ok", "dafl", "3")
    opened = inspection.open_run(tmp_path / "mine")
    assert inspection.load_generator(opened)(inspection.latents(opened, 4)).shape == (4, 1, 8, 8)


def test_data_in_memory_are_not_looked_for_later(teacher: nn.Module) -> None:
    student = kd_lightning.distill(teacher, **TINY, mean=MEAN, std=STD, data=digits())
    with pytest.raises(UserError, match="handed over in memory and are not kept"):
        inspection.data_of(inspection.open_run(student.folder))


def test_answers_below_white_are_counted(teacher: nn.Module) -> None:
    with pytest.raises(UserError, match=r"needs the teacher's gradients, but teacher\.access=logits"):
        kd_lightning.distill(teacher, **TINY, mean=MEAN, std=STD, teacher__access="logits")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "dafk"}, "there is no method called dafk; did you mean method=dafl"),
    "student": ({"student": "resnet9"}, "there is no student called resnet9; did you mean student=resnet8"),
    "setting": ({"trainer__max_epoch": 1}, r"trainer\.max_epoch: .*did you mean trainer\.max_epochs"),
    "value": ({"trainer__max_epochs": "many"}, r"trainer\.max_epochs"),
    "shape": ({"image": (1, 8)}, "three whole numbers"),
    "teacher fails": (
        {"image": (3, 8, 8), "mean": None, "std": None},
        r"teacher: SmallConvNet fails on images \(2, 3, 8, 8\)",
    ),
    "teacher's classes": (
        {"num_classes": 7},
        r"teacher: SmallConvNet answers 2 images with \(2, 10\), .*, expected \(2, 7\)",
    ),
    "student's classes": ({"student": nn.Flatten()}, r"student: Flatten answers 2 images with \(2, 64\)"),
    "student's size": ({"student": "lenet5_half"}, "student: LeNet5, .* LeNet5 takes images of 32x32"),
    "mean alone": ({"mean": [0.5], "std": None}, "belong together"),
    "statistics": ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, r"data\.mean: 2 values for 1 channel"),
    "names": ({"classes": ["a"]}, "1 names for num_classes=10"),
    "normalised images": (
        {"data": (3 * torch.ones(2, 1, 8, 8), torch.zeros(2).long())},
        r"data: images from 3 to 3, expected uint8, or floats in \[0, 1\]",
    ),
    "image size": (
        {"data": (torch.zeros(2, 1, 9, 9).byte(), torch.zeros(2).long())},
        r"images are \(2, 1, 9, 9\), expected \(N, 1, 8, 8\)",
    ),
    "labels": ({"data": (torch.zeros(2, 1, 8, 8).byte(), torch.zeros(3).long())}, r"2 images, but labels \(3,\)"),
    "float labels": (
        {"data": (torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2))},
        r"labels are float32 .*one class each",
    ),
    "train unseen": ({"train": torch.zeros(2, 1, 8, 8).byte()}, "train: method=dafl makes its own images"),
    "label": ({"data": (torch.zeros(2, 1, 8, 8).byte(), torch.tensor([0, 10]))}, "label 10 on 1 image"),
    "no train": ({"method": "supervised"}, "no training images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_named_before_anything_starts(case: str, teacher: nn.Module) -> None:
    changes, expected = WRONG[case]
    settings = (
        {k: v for k, v in TINY.items() if not k.startswith(("method__", "source__"))} if case == "no train" else TINY
    )
    with pytest.raises(UserError, match=expected):
        kd_lightning.distill(teacher, **(settings | {"mean": MEAN, "std": STD} | changes))
    assert not api._HELD


def test_images_in_memory_are_trained_on(teacher: nn.Module) -> None:
    images, labels = digits()
    how = {**{k: v for k, v in TINY.items() if not k.startswith(("source__", "method__"))}, "mean": MEAN, "std": STD}
    pairs = TensorDataset(images.float() / 255, labels)
    students = [
        kd_lightning.distill(teacher, method="kd", train=train, data=pairs, data__recipe__batch_size=64, **how)
        for train in (pairs, DataLoader(pairs, batch_size=50))
    ]
    for one, other in zip(*(student.state_dict().values() for student in students), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(UserError, match=r"data=in_memory has no labels, and these are trained on: .* method\.label=0"):
        kd_lightning.distill(teacher, method="kd", train=images, **how)
    alone = kd_lightning.distill(teacher, method="kd", train=images, data=images[:50], method__label=0, **how)
    assert alone.card["metrics"]["test/accuracy"] is None
    assert 0 <= alone.card["metrics"]["test/agreement"] <= 1


GREY = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
FORMS: dict[str, Any] = {
    "grey": (GREY, torch.tensor([0, 1])),
    "array": (GREY.numpy()[..., None], np.array([0, 1], dtype=np.int32)),
    "floats": (GREY[:, None].double() / 255, np.array([[0], [1]])),
    "set": TensorDataset(GREY[:, None], torch.tensor([0, 1])),
    "pictures": [(Image.fromarray(grey.numpy()), i) for i, grey in enumerate(GREY)],
    "mappings": [{"image": grey.numpy()[None], "label": i} for i, grey in enumerate(GREY)],
    "loader": DataLoader(TensorDataset(GREY[:, None].float() / 255, torch.tensor([0, 1])), batch_size=1),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_in_memory_come_in_any_usual_form(form: str) -> None:
    split = split_of(FORMS[form], (1, 3, 4), 2, what="train")
    assert torch.equal(split.images, GREY[:, None])
    assert (split.labels.dtype, split.labels.tolist()) == (torch.int64, [0, 1])


ODD: dict[str, tuple[Any, str]] = {
    "nothing": (5, "train: expected arrays or tensors of images, a torch Dataset or DataLoader, got int"),
    "empty": ([], "train: it holds no image"),
    "texts": ([("a", 1)], "train: item 0 has a str as its image"),
    "nameless": ([{"a": 1}], "train: its items have a, and no image: call it image, its class label"),
    "some labels": ([(GREY[:1], 1), (GREY[:1],)], "1 of 2 items have a label"),
    "whole numbers": (GREY[:, None].int(), "images are int32, expected uint8"),
}


@pytest.mark.parametrize(("given", "said"), ODD.values(), ids=ODD)
def test_what_is_no_image_in_memory_is_said(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        split_of(given, (1, 3, 4), 2, what="train")


def test_a_function_is_no_network_and_the_error_says_who_asks_it() -> None:
    with pytest.raises(UserError, match=r"got function; .* teacher=callable teacher\.function=my_module\.ask"):
        kd_lightning.distill(lambda images: [0] * len(images), **TINY)  # type: ignore[arg-type]


@pytest.mark.slow
def test_several_faults_come_together(teacher: nn.Module) -> None:
    with pytest.raises(UserError, match=r"(?s)method=dafk.*trainer\.max_epoch:"):
        kd_lightning.distill(teacher, **TINY, method="dafk", trainer__max_epoch=3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-3, "0.001"),
        ("dafl", "dafl"),
        ("a b'c", "'a b\\'c'"),
        ([1, "x y"], "[1,'x y']"),
        ({"a": [None]}, "{a:[null]}"),
    ],
)
def test_values_are_spelled_as_hydra_reads_them(value: Any, text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert api._spelled(value) == text
    read = OverridesParser.create().parse_override(f"key={text}").value()
    assert str(read) == str(value) if isinstance(value, str | list | dict) else read == value


@pytest.mark.slow
def test_both_names_are_there_and_cost_nothing_until_asked() -> None:
    code = (
        "import sys, kd_lightning; assert 'torch' not in sys.modules; "
        "assert callable(kd_lightning.load_student) and 'lightning' not in sys.modules; "
        "assert callable(kd_lightning.distill)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        kd_lightning.distil  # noqa: B018
