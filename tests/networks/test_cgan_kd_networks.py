"""The networks of cGAN-KD have, to the parameter, the sizes that its authors' code has at each of its image sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from torch import nn
from torchvision.models import mobilenet_v2

from kd_lightning.networks import head_of
from kd_lightning.networks.classifiers.densenet import DenseNet
from kd_lightning.networks.classifiers.mobilenet import MobileNetV2
from kd_lightning.networks.classifiers.regressor import Regressor
from kd_lightning.networks.classifiers.resnet import CifarResNet, ResNet
from kd_lightning.networks.classifiers.shufflenet import ShuffleNetV1, ShuffleNetV2
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.classifiers.stem import stem_conv
from kd_lightning.networks.classifiers.vgg import VGG
from kd_lightning.networks.classifiers.wide_resnet import WideResNet
from kd_lightning.networks.label_embedding import feature_trunk

WIDE = (32, 64, 128, 256)


def cifar_resnet(depth: int, **settings: Any) -> CifarResNet:
    return CifarResNet(**{"depth": depth, "num_classes": 100, "shortcut": "B"} | settings)


def vgg128(depth: int) -> VGG:
    return VGG(depth=depth, num_classes=100, pools=3, grid=4, pooling="max", hidden=(1024, 1024))


CIFAR: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: cifar_resnet(20), 278_324),
    "resnet56": (lambda: cifar_resnet(56), 861_620),
    "resnet110": (lambda: cifar_resnet(110), 1_736_564),
    "resnet8x4": (lambda: cifar_resnet(8, widths=WIDE), 1_233_540),
    "resnet32x4": (lambda: cifar_resnet(32, widths=WIDE), 7_433_860),
    "resnet50": (lambda: ResNet(depth=50, num_classes=100), 23_705_252),
    "wrn_16_2": (lambda: WideResNet(depth=16, widen=2, num_classes=100), 703_284),
    "wrn_40_1": (lambda: WideResNet(depth=40, widen=1, num_classes=100), 569_780),
    "wrn_40_2": (lambda: WideResNet(depth=40, widen=2, num_classes=100), 2_255_156),
    "vgg8": (lambda: VGG(depth=8, num_classes=100, pools=3), 3_965_028),
    "vgg13": (lambda: VGG(depth=13, num_classes=100, pools=3), 9_462_180),
    "vgg19": (lambda: VGG(depth=19, num_classes=100, pools=3), 20_086_692),
    "mobilenet_v2": (lambda: MobileNetV2(num_classes=100, width=0.5), 812_836),
    "shufflenet_v1": (lambda: ShuffleNetV1(num_classes=100), 949_258),
    "shufflenet_v2": (lambda: ShuffleNetV2(num_classes=100), 1_355_528),
    "densenet121": (lambda: DenseNet(depth=121, num_classes=100), 7_048_548),
}
IMAGENET100: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: cifar_resnet(20, stem="quarter"), 278_660),
    "resnet8x4": (lambda: cifar_resnet(8, widths=WIDE, stem="quarter"), 1_234_212),
    "resnet34": (lambda: ResNet(depth=34, num_classes=100, stem="quarter"), 21_329_636),
    "wrn_40_2": (lambda: WideResNet(depth=40, widen=2, num_classes=100, stem="quarter"), 2_255_524),
    "vgg8": (lambda: vgg128(8), 13_455_460),
    "vgg19": (lambda: vgg128(19), 29_577_124),
    "mobilenet_v2": (lambda: MobileNetV2(num_classes=100, width=0.5, stem="quarter"), 812_836),
    "shufflenet_v1": (lambda: ShuffleNetV1(num_classes=100, stem="quarter"), 950_338),
    "densenet121": (lambda: DenseNet(depth=121, num_classes=100, stem="quarter"), 7_978_856 - 922_500 - 9_408 + 3_072),
    "densenet161": (lambda: DenseNet(depth=161, num_classes=100, stem="quarter"), 26_683_396),
}
NUMBERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vgg11": (lambda: VGG(depth=11, num_classes=1, grid=2), 10_540_289),
    "vgg13": (lambda: VGG(depth=13, num_classes=1, grid=2), 10_725_185),
    "vgg19": (lambda: VGG(depth=19, num_classes=1, grid=2), 21_349_697),
    "resnet20": (lambda: cifar_resnet(20, first_stride=2), 570_609),
    "resnet56": (lambda: cifar_resnet(56, first_stride=2), 1_153_905),
    "resnet8x4": (lambda: cifar_resnet(8, widths=WIDE, first_stride=2), 1_604_641),
    "wrn_16_1": (lambda: WideResNet(depth=16, widen=1, num_classes=1, stem="half"), 473_281),
    "wrn_40_1": (lambda: WideResNet(depth=40, widen=1, num_classes=1, stem="half"), 862_145),
    "mobilenet_v2": (lambda: mobilenet_v2(num_classes=1), 3_144_961),
    "shufflenet_v1": (lambda: ShuffleNetV1(num_classes=1, stem="half"), 1_611_487),
    "resnet18": (lambda: ResNet(depth=18, num_classes=1, first_stride=2), 11_700_929),
}


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("make", "count"), CIFAR.values(), ids=CIFAR)
def test_for_32_pixels(make: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        net = make()
    assert parameters(net) == count


@pytest.mark.parametrize(("make", "count"), IMAGENET100.values(), ids=IMAGENET100)
def test_for_128_pixels(make: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        net = make()
    assert parameters(net) == count


@pytest.mark.parametrize(("make", "count"), NUMBERS.values(), ids=NUMBERS)
def test_for_numbers_at_64_pixels(make: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        net = Regressor(make())
    assert parameters(net) == count
    assert net.net.get_submodule(head_of(net.net))[-1].out_features == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGENET100)
def test_members_for_128_pixels_are_those(name: str) -> None:
    cfg = composed("data=imagenet100", f"student={name}", f"teacher={name}")
    assert cfg.teacher.net == cfg.student
    with torch.device("meta"):
        assert parameters(instantiate(cfg.student)) == IMAGENET100[name][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_members_for_numbers_at_64_pixels_are_those(name: str) -> None:
    member = "regressor/" + name.replace("mobilenet_v2", "mobilenet_v2_torchvision")
    cfg = composed("data=utkface", "method=kd", f"student={member}", f"teacher={member}")
    assert cfg.teacher.net == cfg.student
    with torch.device("meta"):
        assert parameters(instantiate(cfg.student)) == NUMBERS[name][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR)
def test_members_for_32_pixels_are_those(name: str) -> None:
    cfg = composed("data=cifar100", f"student={name}", f"teacher={name}")
    assert cfg.teacher.net == cfg.student
    with torch.device("meta"):
        found = parameters(instantiate(cfg.student))
    assert found == CIFAR[name][1] - (2_752 if name == "resnet20" else 0)  # whose member has shortcuts without weights


def maps(net: nn.Module, paths: list[str], size: int) -> list[int]:
    """Heights of what some modules put out."""
    seen: list[int] = []
    for path in paths:
        net.get_submodule(path).register_forward_hook(lambda m, args, out: seen.append(out.shape[-1]))
    net(torch.empty(2, 3, size, size))
    return seen


@pytest.mark.slow
def test_stems_and_strides_leave_what_the_authors_leave() -> None:
    groups, blocks = ["layer1", "layer2", "layer3"], ["block1", "block2", "block3"]
    with torch.device("meta"):
        assert maps(cifar_resnet(8), groups, 32) == [32, 16, 8]
        assert maps(cifar_resnet(8, stem="quarter"), groups, 128) == [32, 16, 8]
        assert maps(cifar_resnet(8, first_stride=2), groups, 64) == [32, 16, 8]
        assert maps(ResNet(depth=18, num_classes=1, first_stride=2), ["layer1", "layer4"], 64) == [32, 4]
        assert maps(WideResNet(depth=16, widen=1, num_classes=1, stem="half"), blocks, 64) == [32, 16, 8]
        assert maps(ShuffleNetV1(num_classes=1, stem="half"), groups, 64) == [16, 8, 4]
        assert maps(ShuffleNetV2(num_classes=1, stem="quarter"), groups, 128) == [16, 8, 4]
        assert maps(VGG(depth=8, num_classes=1, pools=3), ["features", "pool"], 32) == [4, 1]
        assert maps(vgg128(8), ["features", "pool"], 128) == [16, 4]
        assert maps(VGG(depth=8, num_classes=1, grid=2), ["features", "pool"], 64) == [2, 2]
        assert maps(MobileNetV2(num_classes=1), ["groups"], 32) == [2]
        assert maps(MobileNetV2(num_classes=1, stem="quarter"), ["groups"], 128) == [4]
        assert maps(DenseNet(depth=121, num_classes=1), ["features"], 32) == [4]
        assert maps(feature_trunk(), ["3", "6"], 32) == [32, 4]
        assert maps(feature_trunk(stem="quarter"), ["0", "3", "7"], 128) == [64, 32, 4]


@pytest.mark.parametrize(
    ("net", "features"),
    [
        (MobileNetV2(num_classes=7, in_channels=2, width=0.25), 1280),
        (ShuffleNetV1(num_classes=7, in_channels=2), 960),
        (ShuffleNetV2(num_classes=7, in_channels=2), 1024),
        (VGG(depth=8, num_classes=7, in_channels=2, pools=3, grid=2, pooling="max", hidden=(16,)), 2048),
        (SmallConvNet(num_classes=7, in_channels=2, grid=4), 1024),
    ],
    ids=lambda v: type(v).__name__,
)
def test_logits_features_and_gradients(net: nn.Module, features: int) -> None:
    seen: list[torch.Tensor] = []
    net.get_submodule(head_of(net)).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    logits = net(torch.randn(3, 2, 32, 32))
    assert logits.shape == (3, 7)
    assert seen[0].shape == (3, features)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_shuffled_channels_reach_every_group() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    from kd_lightning.networks.classifiers.shufflenet import _shuffled

    assert _shuffled(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert _shuffled(_shuffled(x, 3), 2).equal(x)


def test_a_regressor_begins_at_the_mean_label_and_never_goes_below_the_lowest() -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 3, 8, 8)
    net = Regressor(SmallConvNet(num_classes=1, in_channels=3), start=0.3)
    answers = net.train()(x).detach()
    assert answers.shape == (64, 1)
    assert float(answers.mean()) == pytest.approx(0.3, abs=0.1)
    assert (answers > 0).all()
    low = Regressor(SmallConvNet(num_classes=1, in_channels=3), start=-5.0)
    assert not low(x).any()
    assert (Regressor(SmallConvNet(num_classes=1, in_channels=3), start=-5.0, relu=False)(x) < 0).all()


def test_a_regressor_takes_any_head_and_keeps_its_place() -> None:
    net = Regressor(mobilenet_v2(num_classes=1), hidden=(16,))
    assert head_of(net) == "net.classifier"
    assert [type(m).__name__ for m in net.get_submodule("net.classifier")] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]
    with pytest.raises(ValueError, match="has no linear layer to replace"):
        Regressor(nn.ModuleDict({"head": nn.Identity()}))


def test_what_cannot_be_is_refused() -> None:
    for wrong in (
        lambda: cifar_resnet(8, widths=(16, 32)),
        lambda: DenseNet(depth=169, num_classes=2),
        lambda: VGG(depth=8, num_classes=2, pools=6),
        lambda: stem_conv(3, 8, "third"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"got|take"):
            wrong()
