"""A deployed ONNX file as a torch network: weights found, softmax cut, answers those of onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import composition
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kd_lightning.core.notices import noticing
from kd_lightning.errors import TeacherError
from kd_lightning.networks import onnx_network as reading
from kd_lightning.networks.onnx_network import FromOnnx, cut_softmax, lift_constants, onnx_network

CLASSES, SIDE = 3, 4
WEIGHT = np.random.default_rng(0).normal(size=(CLASSES, 2 * SIDE * SIDE)).astype(np.float32)


def model(*, end: str = "Softmax", identity: bool = False, constant: bool = True, **metadata: str) -> Any:
    """Flatten, a linear layer whose weights are in Constant nodes, and an end."""
    tensors = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.ones(CLASSES, np.float32), "b")]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] if constant else []
    nodes += [helper.make_node("Flatten", ["x"], ["flat"]),
              helper.make_node("Gemm", ["flat", "w", "b"], ["rows"], transB=1)]  # fmt: skip
    nodes += [helper.make_node(end, ["rows"], ["told" if identity else "y"])] if end else []
    if identity:
        nodes += [helper.make_node("Identity", ["told"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
            (("x", ["n", 2, SIDE, SIDE]), ("y" if end else "rows", ["n", CLASSES])))  # fmt: skip
    graph = helper.make_graph(nodes, "net", [x], [y], [] if constant else tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(made, metadata)
    return made


class Linear(nn.Module):
    """What a converter makes of it: the weights that it finds among the initialisers."""

    def __init__(self, made: Any, *, off: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        there = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in made.graph.initializer}
        self.weight, self.bias = nn.Parameter(there["w"] + off), nn.Parameter(there["b"])
        self.norm = nn.BatchNorm1d(CLASSES, eps=0.0) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(nn.functional.linear(x.flatten(1), self.weight, self.bias))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(model(), tmp_path / "net.onnx")
    monkeypatch.setattr(reading, "converted", Linear)
    return tmp_path / "net.onnx"


def runtime(file: Path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def test_weights_in_constant_nodes_become_initialisers() -> None:
    made = model()
    lift_constants(made)
    assert [node.op_type for node in made.graph.node] == ["Flatten", "Gemm", "Softmax"]
    assert {t.name: numpy_helper.to_array(t).shape for t in made.graph.initializer} == {
        "w": WEIGHT.shape,
        "b": (CLASSES,),
    }
    onnx.checker.check_model(made)


@pytest.mark.parametrize(
    ("end", "identity"), [("Softmax", False), ("LogSoftmax", False), ("Softmax", True), ("", False)]
)
def test_a_softmax_at_the_end_is_cut(end: str, identity: bool, tmp_path: Path) -> None:
    made = model(end=end, identity=identity)
    assert cut_softmax(made, tmp_path) == end
    assert [node.op_type for node in made.graph.node][-1] == "Gemm"
    assert made.graph.output[0].name == "rows"
    onnx.save(made, tmp_path / "cut.onnx")
    x = torch.rand(5, 2, SIDE, SIDE)
    torch.testing.assert_close(runtime(tmp_path / "cut.onnx", x), x.flatten(1) @ torch.from_numpy(WEIGHT).T + 1)


def test_a_sigmoid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"ends in a sigmoid.*teacher\.white=false teacher\.outputs=sigmoid"):
        cut_softmax(model(end="Sigmoid"), tmp_path)


def test_its_logits_are_those_of_the_file_and_gradients_reach_the_image(file: Path) -> None:
    net = onnx_network(str(file))
    x = torch.rand(5, 2, SIDE, SIDE, requires_grad=True)
    torch.testing.assert_close(net(x).softmax(1), runtime(file, x.detach()))
    net(x)[:, 0].sum().backward()
    torch.testing.assert_close(x.grad.flatten(1), torch.from_numpy(WEIGHT[:1]).expand(5, -1))
    assert not any(p.requires_grad for p in net.parameters())


def test_it_stays_in_evaluation_mode(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "converted", lambda made: Linear(made, norm=True))
    net = onnx_network(str(file)).train()
    assert not any(module.training for module in net.net.modules())


@pytest.mark.parametrize("off", [0.1, float("nan")])
def test_a_conversion_that_answers_something_else_is_refused(
    off: float, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "converted", lambda made: Linear(made, off=off * torch.eye(CLASSES, WEIGHT.shape[1])))
    with pytest.raises(TeacherError, match=r"converted, .*net\.onnx answers something else.*teacher\.white=false"):
        onnx_network(str(file))


def test_batch_norms_are_counted_and_named_or_their_absence_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with noticing() as heard:
        onnx_network(str(file))
    assert heard == [
        "teacher.file: net.onnx has 0 batch norms: they are folded, and methods that read their statistics cannot run"
    ]
    monkeypatch.setattr(reading, "converted", lambda made: Linear(made, norm=True))
    with noticing() as heard:
        onnx_network(str(file))
    assert heard == ["teacher.file: net.onnx has 1 batch norms: norm"]


def test_what_is_no_network_or_no_classifier_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeacherError, match="there is no file"):
        onnx_network(str(file.parent / "gone.onnx"))
    with pytest.raises(TeacherError, match="is not an ONNX network"):
        onnx_network(__file__)

    def broken(made: Any) -> nn.Module:
        raise NotImplementedError("Converter is not registered (HardSwish)")

    monkeypatch.setattr(reading, "converted", broken)
    with pytest.raises(TeacherError, match=r"cannot be converted: .*HardSwish.*teacher\.white=false"):
        onnx_network(str(file))
    monkeypatch.setattr(reading, "converted", lambda made: nn.Identity())
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 4, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    with pytest.raises(TeacherError, match=r"answers 8 images with \(8, 2, 4, 4\), expected a row of classes for each"):
        onnx_network(str(file))


def test_layout_order_of_channels_and_a_file_that_normalises_itself() -> None:
    seen: list[torch.Tensor] = []
    net = nn.Identity()
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.rand(2, 3, 4, 5)
    FromOnnx(net, layout="nhwc", channel_order="bgr")(x)
    assert torch.equal(seen[0], x[:, [2, 1, 0]].permute(0, 2, 3, 1))
    FromOnnx(net, undo=([0.5, 0.4, 0.3], [0.2, 0.2, 0.1]))(x)
    torch.testing.assert_close(seen[1][:, 2], x[:, 2] * 0.1 + 0.3)


def test_a_missing_converter_is_named_with_the_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "onnx2torch", None)
    onnx.save(model(), file)
    with pytest.raises(TeacherError, match=r"white=true needs onnx2torch: (uv )?pip install 'kd-lightning\[onnx\]'"):
        onnx_network(str(file))


def test_white_or_not_is_a_setting(file: Path) -> None:
    given = ("method=kd", "controls=none", "teacher=onnx", f"teacher.file={file}")
    own = composition(*given, "teacher.white=true").teacher
    assert own is not None
    assert (own.client, own.weights, own.access) == (None, "own", "white")
    assert own.net is not None
    asked = composition(*given).teacher
    assert asked is not None
    assert (asked.net, asked.weights, asked.access) == (None, None, "logits")
    assert asked.client is not None


@pytest.mark.filterwarnings("ignore")
def test_the_real_converter_keeps_batch_norms(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    random = np.random.default_rng(0).uniform(0.5, 1, (6, 2)).astype(np.float32)
    tensors = [numpy_helper.from_array(row, name) for row, name in zip(random, ("s", "o", "m", "v"), strict=False)]
    tensors += [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.ones(CLASSES, np.float32), "b")]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
    nodes += [helper.make_node("BatchNormalization", ["x", "s", "o", "m", "v"], ["n"]),
              helper.make_node("Flatten", ["n"], ["flat"]),
              helper.make_node("Gemm", ["flat", "w", "b"], ["rows"], transB=1),
              helper.make_node("Softmax", ["rows"], ["y"])]  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
            (("x", ["n", 2, SIDE, SIDE]), ("y", ["n", CLASSES])))  # fmt: skip
    graph = helper.make_graph(nodes, "net", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "n.onnx")
    net = onnx_network(str(tmp_path / "n.onnx"))
    (norm,) = (module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    torch.testing.assert_close(norm.running_var, torch.from_numpy(random[3]))
    images = torch.rand(3, 2, SIDE, SIDE)
    torch.testing.assert_close(net(images).softmax(1), runtime(tmp_path / "n.onnx", images))
