"""Two domains through the whole house: whose test it is, what a run measures and keeps, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, composed, composition, tiny_run
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from kd_lightning.cli.summary import summary
from kd_lightning.config.check import faults
from kd_lightning.core.inference import predict
from kd_lightning.core.strangers import read_tensors
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets import digit_domain
from kd_lightning.engine.data import load_data
from kd_lightning.errors import DataError, TeacherError
from kd_lightning.networks.classifiers.resnet import ResNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results.run_loader import open_run, real_images
from kd_lightning.store.artifacts import Store

RUN = ("experiment=uda_kd/digits", "method=uda_kd", "data.recipe.batch_size=300", "teacher.net.width=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A few rounds on digits and rotated digits, with a control that never saw the second domain."""
    return tiny_run(
        tmp_path_factory.mktemp("domains") / "run",
        *RUN,
        *(f"+controls.source_only.{key}=${{teacher.fit.{key}}}" for key in ("source", "method")),
        "+controls.source_only.teacher=false",
        root=tmp_path_factory.mktemp("domains_store"),
    )


def accuracy(net: nn.Module, target: Dataset) -> float:
    assert target.test is not None
    return float((predict(net.eval(), target.test.images, device="cpu").argmax(1) == target.test.labels).float().mean())


def test_a_run_measures_teacher_copy_and_control_on_the_target(run: Outcome) -> None:
    target, made = digit_domain.load(), composition(*RUN)
    metrics = run["metrics"]
    assert {"teacher/accuracy", "adapted/accuracy", "source_only/accuracy", "test/accuracy"} <= metrics.keys()
    for name, file in {"adapted": "adapted", "test": "student"}.items():
        node = made.student if name == "test" else made.teacher.net  # type: ignore[union-attr]
        net = Normalized(node.build(), mean=[0.0], std=[1.0])  # type: ignore[union-attr]
        net.load_state_dict(read_tensors(run.folder / f"{file}.safetensors", advice=""))
        assert metrics[f"{name}/accuracy"] == pytest.approx(accuracy(net, target), abs=1e-6)
    assert "adapted" in summary(run)


def test_the_copy_is_a_teacher_of_another_run(run: Outcome, tmp_path: Path) -> None:
    file = run.folder / "adapted.safetensors"
    again = tiny_run(tmp_path / "run", *RUN, f"teacher.weights={file}", "trainer.max_epochs=1", root=tmp_path / "store")
    assert again["metrics"]["teacher/accuracy"] == pytest.approx(run["metrics"]["adapted/accuracy"], abs=1e-6)


def test_any_method_is_tested_on_the_target(run: Outcome, tmp_path: Path) -> None:
    """Supervised on the labelled stream only, it is what the control was."""
    other = tiny_run(tmp_path / "run", *RUN[:1], "method=supervised", *RUN[2:], root=tmp_path / "store")
    assert other["metrics"]["test/accuracy"] == run["metrics"]["source_only/accuracy"]


def test_what_a_run_was_measured_on_is_read_again_from_its_record(run: Outcome) -> None:
    target = digit_domain.load()
    assert target.test is not None
    images = real_images(open_run(run.folder))
    assert torch.equal(images.images, target.test.images)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=uda_kd", "source=real"), "two_domains"),
        (("method=dan", "source=few_shot"), "two_domains"),
        (("method=uda_kd", "teacher.access=probs"), "set teacher.access=white"),
        (("method=uda_kd", "teacher=none"), "needs a teacher"),
        (("method=uda_kd", "data=rotated_digits", "data.base=digits", "data.size=8"), "made for classes"),
        (("method=uda_kd", "method.growth=wild"), "method.growth: expected one of"),
    ],
)
def test_a_composition_that_cannot_run_is_refused(overrides: tuple[str, ...], said: str) -> None:
    assert any(said in line for line in faults(composed(*overrides))), faults(composed(*overrides))


def test_what_is_said_of_an_image_of_another_size_helps(tmp_path: Path) -> None:
    def loaded(*more: str) -> Dataset:
        made = composition("method=uda_kd", "data=digit_domain", *more)
        return load_data(made.data, Store(tmp_path), made.source)

    with pytest.raises(DataError, match=r"source\.target\.size=\$\{data\.size\}"):
        loaded("source.target.size=10")
    assert loaded("source.target.size=${data.size}").unlabelled is not None


def test_class_folders_compose_at_the_papers_scale(tmp_path: Path) -> None:
    for place in ("amazon", "webcam"):
        for name in ("bike", "mug"):
            (tmp_path / place / name).mkdir(parents=True)
            Image.new("RGB", (300, 260), (90, 20, 200)).save(tmp_path / place / name / "a.png")
    made = composition("experiment=uda_kd/office31", f"domains.root={tmp_path}")
    assert made.teacher is not None
    assert made.teacher.net is not None
    with torch.device("meta"):
        nets = [net.build() for net in (made.teacher.net, made.student)]
    assert [len(net.layer3) for net in nets] == [6, 6]
    assert [net.fc.in_features for net in nets] == [2048, 512]
    assert {net.fc.out_features for net in nets} == {2}
    assert made.trainer["max_epochs"] == 400
    method: Any = made.method.settings
    assert (method["temperature"], method["alpha"], method["beta"]) == (20.0, 0.3, (0.1, 0.9))
    assert method["scheduler_t"]["epochs"] == 400
    assert {method[key]["lr"] for key in ("optimizer", "optimizer_t")} == {1e-3}
    dataset = load_data(made.data, Store(tmp_path / "store"), made.source)
    assert dataset.unlabelled is not None
    assert dataset.unlabelled.shape == (2, 3, 224, 224)


def test_weights_of_imagenet_are_read_but_for_the_last_layer(tmp_path: Path) -> None:
    """With the stem of 224 pixels our ResNet is torchvision's."""
    published = resnet18(num_classes=7)
    torch.save(published.state_dict(), tmp_path / "resnet18.pth")
    net: Any = ResNet(depth=18, num_classes=7, stem="imagenet", backbone=str(tmp_path / "resnet18.pth"))
    assert not torch.equal(net.fc.weight, published.fc.weight)
    net.fc = published.fc
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(net.eval()(x), published.eval()(x))
    torch.save({"conv1.weight": published.conv1.weight}, tmp_path / "another.pth")
    with pytest.raises(TeacherError, match="does not fit the backbone"):
        ResNet(depth=18, num_classes=3, stem="imagenet", backbone=str(tmp_path / "another.pth"))
    with pytest.raises(TeacherError, match="there is no file"):
        ResNet(depth=18, num_classes=3, stem="imagenet", backbone=str(tmp_path / "none.pth"))
