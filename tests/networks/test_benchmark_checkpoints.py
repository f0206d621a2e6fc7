"""Files in the layout of RepDistiller's teachers load as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.errors import TeacherError
from kd_lightning.networks.classifiers.resnet import CifarResNet, ResNet
from kd_lightning.networks.classifiers.vgg import VGG
from kd_lightning.networks.classifiers.wide_resnet import WideResNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights

Shape = tuple[int, ...]


def norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from ((f"{name}.{part}", (width,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def head(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (5, width)
    yield f"{name}.bias", (5,)


def resnet_names() -> Iterator[tuple[str, Shape]]:
    """Depth 8, widths 16, 16, 32 and 64."""
    yield "conv1.weight", (16, 3, 3, 3)
    yield from norm("bn1", 16)
    for layer, (inputs, width) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
        block = f"layer{layer}.0"
        yield f"{block}.conv1.weight", (width, inputs, 3, 3)
        yield from norm(f"{block}.bn1", width)
        yield f"{block}.conv2.weight", (width, width, 3, 3)
        yield from norm(f"{block}.bn2", width)
        if inputs != width:
            yield f"{block}.downsample.0.weight", (width, inputs, 1, 1)
            yield from norm(f"{block}.downsample.1", width)
    yield from head("fc", 64)


def wide_names() -> Iterator[tuple[str, Shape]]:
    """Depth 10, factor 2."""
    yield "conv1.weight", (16, 3, 3, 3)
    for number, (inputs, width) in enumerate(((16, 32), (32, 64), (64, 128)), start=1):
        block = f"block{number}.layer.0"
        yield from norm(f"{block}.bn1", inputs)
        yield f"{block}.conv1.weight", (width, inputs, 3, 3)
        yield from norm(f"{block}.bn2", width)
        yield f"{block}.conv2.weight", (width, width, 3, 3)
        yield f"{block}.convShortcut.weight", (width, inputs, 1, 1)
    yield from norm("bn1", 128)
    yield from head("fc", 128)


def vgg_names() -> Iterator[tuple[str, Shape]]:
    """Depth 8."""
    for stage, (inputs, width) in enumerate(((3, 64), (64, 128), (128, 256), (256, 512), (512, 512))):
        yield f"block{stage}.0.weight", (width, inputs, 3, 3)
        yield f"block{stage}.0.bias", (width,)
        yield from norm(f"block{stage}.1", width)
    yield from head("classifier", 512)


def bottleneck_names() -> Iterator[tuple[str, Shape]]:
    """ResNet-50 with 3x3 stem."""
    yield "conv1.weight", (64, 3, 3, 3)
    yield from norm("bn1", 64)
    inputs = 64
    for layer, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for number in range(blocks):
            block = f"layer{layer}.{number}"
            shapes = ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for place, shape in enumerate(shapes, start=1):
                yield f"{block}.conv{place}.weight", shape
                yield from norm(f"{block}.bn{place}", shape[0])
            if number == 0:
                yield f"{block}.shortcut.0.weight", (4 * width, inputs, 1, 1)
                yield from norm(f"{block}.shortcut.1", 4 * width)
            inputs = 4 * width
    yield from head("linear", inputs)


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Iterator[tuple[str, Shape]]]]] = {
    "resnet": (lambda: CifarResNet(depth=8, num_classes=5, shortcut="B"), resnet_names),
    "wrn": (lambda: WideResNet(depth=10, widen=2, num_classes=5), wide_names),
    "vgg": (lambda: VGG(depth=8, num_classes=5, pools=3), vgg_names),
    "ResNet50": (lambda: ResNet(depth=50, num_classes=5), bottleneck_names),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_of_a_teacher_finds_its_place(name: str, tmp_path: Path) -> None:
    make, names = LAYOUTS[name]
    layout = dict(names())
    values: dict[str, Tensor] = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(layout.items())}
    values = {key: value.long() if key.endswith("tracked") else value for key, value in values.items()}
    torch.save({"epoch": 240, "model": values, "accuracy": torch.tensor(70.0)}, tmp_path / "ckpt_epoch_240.pth")
    with torch.device("meta"):
        net = make()
    net = Normalized(net.to_empty(device="cpu"), mean=[0.5] * 3, std=[0.25] * 3)
    load_weights(net, tmp_path / "ckpt_epoch_240.pth")
    found = sorted(float(value.flatten()[0]) for value in net.net.state_dict().values())
    assert found == [float(i) for i in range(len(layout))]
    assert float(net.mean.flatten()[0]) == 0.5


def test_a_teacher_of_another_width_is_refused(tmp_path: Path) -> None:
    values = {key: torch.zeros(shape) for key, shape in resnet_names()}
    torch.save({"model": values}, tmp_path / "t.pth")
    with pytest.raises(TeacherError, match=r"conv1.weight: shape \(16, 3, 3, 3\), the network has \(32, 3, 3, 3\)"):
        load_weights(CifarResNet(depth=8, num_classes=5, shortcut="B", widths=(32, 64, 128, 256)), tmp_path / "t.pth")
