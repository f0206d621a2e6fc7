import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import densenet121, mobilenet_v2, resnet18, vit_b_16

from kd_lightning.networks import head_of
from kd_lightning.networks.classifiers.alexnet import AlexNet
from kd_lightning.networks.classifiers.lenet import FsbbtLeNet5, LeNet5
from kd_lightning.networks.classifiers.resnet import CifarResNet, ResNet
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.classifiers.vgg import VGG
from kd_lightning.networks.classifiers.wide_resnet import WideResNet


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def batch_norms(net: nn.Module) -> list[int]:
    return [m.num_features for m in net.modules() if isinstance(m, _BatchNorm)]


def lenet_count(first: int, second: int, feature: int, hidden: int) -> int:
    convolutions = (25 + 1) * first + (25 * first + 1) * second + (25 * second + 1) * feature
    return convolutions + (feature + 1) * hidden + (hidden + 1) * 10


def wrn_count(depth: int, widen: int, classes: int) -> int:
    n = (depth - 4) // 6
    total, inputs = 3 * 9 * 16, 16
    for outputs in (16 * widen, 32 * widen, 64 * widen):
        for _ in range(n):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + (inputs + 1) * classes


def vgg_count(widths: list[int], classes: int) -> int:
    pairs = zip([3, *widths], widths, strict=False)
    return sum(9 * a * b + b + 2 * b for a, b in pairs) + (widths[-1] + 1) * classes


def test_lenet_has_the_papers_size() -> None:
    assert parameters(LeNet5()) == lenet_count(6, 16, 120, 84) == 61_706
    assert parameters(LeNet5(widths=(3, 8, 60, 42))) == lenet_count(3, 8, 60, 42) == 15_738
    assert batch_norms(LeNet5()) == []
    assert batch_norms(LeNet5(batch_norm=True)) == [6, 16, 120]
    assert parameters(LeNet5(batch_norm=True)) == 61_706 + 2 * (6 + 16 + 120) == 61_990
    assert parameters(LeNet5(widths=(3, 8, 60, 42), batch_norm=True)) == 15_738 + 2 * (3 + 8 + 60) == 15_880


def fsbbt_count(first: int, second: int) -> int:
    convolutions = (25 + 1) * first + (25 * first + 1) * second
    return convolutions + (6 * 6 * second + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10


def test_fs_bbts_lenet_is_larger_and_its_half_keeps_the_linear_layers() -> None:
    assert parameters(FsbbtLeNet5()) == fsbbt_count(6, 16) == 82_826
    assert parameters(FsbbtLeNet5(widths=(3, 8))) == fsbbt_count(3, 8) == 46_380
    assert FsbbtLeNet5()(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"28x28, got 32x32: set data\.size=28"):
        FsbbtLeNet5()(torch.rand(2, 1, 32, 32))


def alexnet_count(widths: list[int], hidden: list[int]) -> int:
    total, inputs = 0, 3
    for outputs, kernel in zip(widths, (5, 5, 3, 3, 3), strict=True):
        total += (inputs * kernel**2 + 1) * outputs + 2 * outputs
        inputs = outputs
    inputs *= 3 * 3  # 32 -> 15 -> 7 -> 3
    for outputs in hidden:
        total += (inputs + 1) * outputs + 2 * outputs
        inputs = outputs
    return total + (inputs + 1) * 10


def test_alexnet_and_its_half() -> None:
    halved = AlexNet(widths=(24, 64, 96, 96, 64), hidden=(256, 128))
    assert parameters(AlexNet()) == alexnet_count([48, 128, 192, 192, 128], [512, 256]) == 1_659_178
    assert parameters(halved) == alexnet_count([24, 64, 96, 96, 64], [256, 128]) == 417_434
    assert batch_norms(AlexNet()) == [48, 128, 192, 192, 128, 512, 256]
    assert halved(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="32x32, got 28x28"):
        halved(torch.rand(2, 3, 28, 28))


@pytest.mark.parametrize(("depth", "count"), [(8, 75_290), (14, 172_506), (20, 269_722), (26, 366_938)])
def test_cifar_resnet_with_free_shortcuts_has_the_published_size(depth: int, count: int) -> None:
    assert parameters(CifarResNet(depth=depth, num_classes=10)) == count


def test_projection_shortcuts_add_two_convolutions_with_batch_norm() -> None:
    free, projected = (CifarResNet(depth=8, num_classes=10, shortcut=kind) for kind in ("A", "B"))
    assert parameters(projected) - parameters(free) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_free_shortcut_keeps_every_second_pixel_and_appends_zeros() -> None:
    shortcut = CifarResNet(depth=8, num_classes=10).layer2.get_submodule("0.downsample")
    x = torch.randn(2, 16, 8, 8)
    y = shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    torch.testing.assert_close(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


@pytest.mark.parametrize(
    ("depth", "count", "norms", "channels"), [(18, 11_173_962, 20, 4_800), (34, 21_282_122, 36, 8_512)]
)
def test_resnet_for_small_images(depth: int, count: int, norms: int, channels: int) -> None:
    net = ResNet(depth=depth, num_classes=10)
    assert parameters(net) == count
    assert len(batch_norms(net)) == norms
    assert sum(batch_norms(net)) == channels


def test_resnet_keeps_resolution_in_its_stem_and_torchvisions_paths() -> None:
    net = ResNet(depth=18, num_classes=10).eval()
    maps: list[torch.Size] = []
    net.layer1.register_forward_hook(lambda m, i, o: maps.append(o.shape))
    net.layer4.register_forward_hook(lambda m, i, o: maps.append(o.shape))
    net(torch.randn(1, 3, 32, 32))
    assert maps == [(1, 64, 32, 32), (1, 512, 4, 4)]
    published = resnet18(num_classes=10).state_dict()
    mine = net.state_dict()
    assert list(mine) == list(published)
    assert [k for k in mine if mine[k].shape != published[k].shape] == ["conv1.weight"]


@pytest.mark.parametrize(
    ("depth", "widen", "count"), [(40, 2, 2_243_546), (40, 1, 563_930), (16, 2, 691_674), (16, 1, 175_066)]
)
def test_wide_resnet_size_follows_from_its_formula(depth: int, widen: int, count: int) -> None:
    assert parameters(WideResNet(depth=depth, widen=widen, num_classes=10)) == wrn_count(depth, widen, 10) == count


def test_wide_resnet_40_2_has_the_batch_norms_that_papers_count() -> None:
    net = WideResNet(depth=40, widen=2, num_classes=10)
    assert (len(batch_norms(net)), sum(batch_norms(net))) == (37, 2_704)


def test_wide_resnet_blocks_are_reachable() -> None:
    net = WideResNet(depth=16, widen=1, num_classes=10).eval()
    shapes = {}
    for path in ("block1", "block2", "block3"):
        net.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: shapes.update({path: tuple(o.shape)}))
    net(torch.randn(2, 3, 32, 32))
    assert shapes == {"block1": (2, 16, 32, 32), "block2": (2, 32, 16, 16), "block3": (2, 64, 8, 8)}


def test_vgg_size() -> None:
    eight = [64, 128, 256, 512, 512]
    eleven = [64, 128, 256, 256, 512, 512, 512, 512]
    thirteen = [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]
    assert parameters(VGG(depth=8, num_classes=100)) == vgg_count(eight, 100)
    assert parameters(VGG(depth=11, num_classes=10)) == vgg_count(eleven, 10) == 9_231_114
    assert parameters(VGG(depth=13, num_classes=10)) == vgg_count(thirteen, 10)


NETS = [
    (LeNet5(num_classes=7, in_channels=2, batch_norm=True), 32, 120),
    (SmallConvNet(num_classes=7, in_channels=2), 8, 64),
    (SmallConvNet(num_classes=7, in_channels=2, widths=(4, 4, 4, 4, 4), batch_norm=True), 9, 4),
    (CifarResNet(depth=8, num_classes=7, in_channels=2), 32, 64),
    (CifarResNet(depth=8, num_classes=7, in_channels=2, shortcut="B"), 17, 64),
    (ResNet(depth=18, num_classes=7, in_channels=2), 32, 512),
    (WideResNet(depth=16, widen=2, num_classes=7, in_channels=2, dropout=0.3), 32, 128),
    (VGG(depth=8, num_classes=7, in_channels=2), 32, 512),
]


@pytest.mark.parametrize(("net", "size", "features"), NETS, ids=lambda v: type(v).__name__)
def test_logits_and_features(net: nn.Module, size: int, features: int) -> None:
    seen: list[torch.Tensor] = []
    handle = net.get_submodule(head_of(net)).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    logits = net(torch.randn(3, 2, size, size))
    handle.remove()
    assert logits.shape == (3, 7)
    assert seen[0].shape == (3, features)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.zero_grad()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LeNet5(widths=(6, 16, 120)),
        lambda: LeNet5()(torch.zeros(1, 1, 28, 28)),
        lambda: CifarResNet(depth=18, num_classes=10),
        lambda: CifarResNet(depth=20, num_classes=10, shortcut="C"),  # type: ignore[arg-type]
        lambda: ResNet(depth=101, num_classes=10),
        lambda: WideResNet(depth=15, widen=1, num_classes=10),
        lambda: WideResNet(depth=16, widen=0, num_classes=10),
        lambda: VGG(depth=16, num_classes=10),
        lambda: SmallConvNet(widths=()),
    ],
)
def test_impossible_shapes_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"got|needs|take"):
        wrong()


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def test_head_is_found_in_our_nets_in_others_and_when_wrapped() -> None:
    assert head_of(LeNet5()) == "head"
    assert head_of(Wrapped(LeNet5())) == "net.head"
    assert head_of(Wrapped(ResNet(depth=18, num_classes=10))) == "net.fc"
    with torch.device("meta"):
        assert head_of(resnet18(weights=None)) == "fc"
        assert head_of(mobilenet_v2(weights=None)) == "classifier"
        assert head_of(densenet121(weights=None)) == "classifier"
        assert head_of(vit_b_16(weights=None)) == "heads.head"


def test_head_search_prefers_the_shallowest_then_the_order_of_names_then_the_last_linear() -> None:
    deep = nn.ModuleDict({"stage": nn.ModuleDict({"head": nn.Linear(2, 2)}), "fc": nn.Linear(2, 2)})
    assert head_of(deep) == "fc"
    both = nn.ModuleDict({"classifier": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert head_of(both) == "head"
    assert head_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU())) == "2"


def test_a_net_without_head_is_told_what_was_looked_for() -> None:
    with pytest.raises(ValueError, match=r"head, fc, classifier and for an nn\.Linear"):
        head_of(nn.Sequential(nn.Conv2d(1, 1, 1)))
