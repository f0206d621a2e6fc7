"""Networks of other libraries and of whole-network files as teachers: they bring weights, size and normalisation."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import composition
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kd_lightning.config.node import Node
from kd_lightning.errors import TeacherError
from kd_lightning.networks import foreign
from kd_lightning.run.first_pass import first_pass
from kd_lightning.run.teacher_net import load_net
from kd_lightning.teachers.remote.onnx_file import onnx_teacher

BENCH: Any = SimpleNamespace(task=None, image_shape=(1, 8, 8))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def saved(kind: str, net: nn.Module, file: Path) -> None:
    if kind == "torchscript":
        torch.jit.trace(net, torch.rand(2, 1, 8, 8)).save(file)
    else:
        batch = {0: torch.export.Dim("batch")}
        torch.export.save(torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=(batch,)), file)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["torchscript", pytest.param("exported", marks=pytest.mark.slow)])
def test_a_whole_network_in_a_file_is_a_teacher(kind: str, net: nn.Module, tmp_path: Path) -> None:
    saved(kind, net, tmp_path / "net.pt")
    own = composition("method=kd", "controls=none", f"teacher={kind}", f"teacher.file={tmp_path}/net.pt")
    first_pass(own, BENCH)
    assert own.teacher is not None
    read, key = load_net(own.teacher)
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(read.eval()(x), net((x - read.mean) / read.std), atol=1e-5)
    assert load_net(own.teacher)[1] == key
    net[1].bias.data.add_(1)
    saved(kind, net, tmp_path / "net.pt")
    assert load_net(own.teacher)[1] != key, "another content of the file is another teacher"


@pytest.mark.parametrize(("kind", "said"), [("torchscript", "not a TorchScript network"), ("exported", r"\(\.pt2\)")])
def test_another_file_is_named(kind: str, said: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=said) as refusal:
        getattr(foreign, kind)(str(tmp_path / "w.pt"))
    assert "\n" not in str(refusal.value)
    with pytest.raises(TeacherError, match="there is no file"):
        getattr(foreign, kind)(str(tmp_path / "gone"))


def onnx_file(net: nn.Module, file: Path, **metadata: str) -> Path:
    weight, bias = (numpy_helper.from_array(p.detach().numpy(), name) for name, p in net[1].named_parameters())
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 8, 8])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 10])
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]),
             helper.make_node("Gemm", ["flat", "weight", "bias"], ["rows"], transB=1)]  # fmt: skip
    graph = helper.make_graph(nodes, "net", [images], [rows], [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, file)
    return file


def test_an_onnx_file_answers(net: nn.Module, tmp_path: Path) -> None:
    file = onnx_file(net, tmp_path / "net.onnx")
    images = np.random.default_rng(0).integers(256, size=(3, 8, 8, 1), dtype=np.uint8)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    wanted = net((x - 0.5) / 0.25)
    settings: dict[str, Any] = {"num_classes": 10, "mean": [0.5], "std": [0.25]}
    told = onnx_teacher(str(file), **settings)
    assert np.allclose([answer.values for answer in told.ask(images)], wanted.detach(), atol=1e-4)
    probs = onnx_teacher(str(file), **settings, access="probs").ask(images)
    assert np.allclose([answer.values for answer in probs], wanted.softmax(1).detach(), atol=1e-5)
    labels = onnx_teacher(str(file), **settings, access="label").ask(images)
    assert [answer.label for answer in labels] == wanted.argmax(1).tolist()
    with pytest.raises(TeacherError, match="is not an ONNX network"):
        onnx_teacher(__file__, **settings)


def test_an_onnx_file_is_a_member_of_teacher(net: nn.Module, tmp_path: Path) -> None:
    file = onnx_file(net, tmp_path / "net.onnx")
    own = composition("method=kd", "controls=none", "source=queried", "source.images=10", "teacher=onnx",
                      f"teacher.file={file}")  # fmt: skip
    assert own.teacher is not None
    assert own.teacher.client is not None
    assert own.teacher.client.build().describe().access == "logits"


def test_a_pretrained_torchvision_network_brings_size_and_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    theirs = models.squeezenet1_1().state_dict()
    monkeypatch.setattr(models.SqueezeNet1_1_Weights, "get_state_dict", lambda self, **how: theirs)
    read = foreign.torchvision("squeezenet1_1")
    assert isinstance(read, foreign.Foreign)
    assert read.size == 224
    assert read.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert read(torch.rand(2, 3, 32, 32)).shape == (2, 1000)


def test_timm_and_transformers_by_name(monkeypatch: pytest.MonkeyPatch, net: nn.Module) -> None:
    net.pretrained_cfg = {"mean": (0.1,), "std": (0.2,), "input_size": (1, 8, 8)}  # type: ignore[assignment]
    fake: Any = ModuleType("timm")
    fake.create_model = lambda name, pretrained, **settings: net
    monkeypatch.setitem(sys.modules, "timm", fake)
    read = Node("kd_lightning.networks.foreign.timm", {"name": "a"}).build()
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(read(torch.nn.functional.interpolate(x, size=8)), net((x - 0.1) / 0.2))
    fake = ModuleType("transformers")
    reader = SimpleNamespace(image_mean=[0.1], image_std=[0.2], size={"height": 8, "width": 8})
    fake.AutoModelForImageClassification = SimpleNamespace(from_pretrained=lambda name, **settings: net)
    fake.AutoImageProcessor = SimpleNamespace(from_pretrained=lambda name: reader)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    assert foreign.huggingface("a").size == 8


def test_a_library_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises((TeacherError, ModuleNotFoundError), match="timm"):
        foreign.timm("a")
