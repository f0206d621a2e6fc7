"""Names of places inside our networks: they exist, hold what they say, and what is no name is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import resnet as torchvision_resnet

from kd_lightning.core.taps import Taps
from kd_lightning.errors import ConfigError
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.classifiers.mobilenet import MobileNetV2
from kd_lightning.networks.classifiers.mobilenet_v1 import MobileNetV1
from kd_lightning.networks.classifiers.resnet import CifarResNet, ResNet, _Basic, _Bottleneck
from kd_lightning.networks.classifiers.shufflenet import ShuffleNetV1, ShuffleNetV2
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.classifiers.vgg import VGG
from kd_lightning.networks.classifiers.wide_resnet import WideResNet
from kd_lightning.networks.places import spread

NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[int], int]] = {
    "resnet8": (lambda: CifarResNet(depth=8, num_classes=5), [16, 32, 64], 64),
    "resnet8x4": (lambda: CifarResNet(depth=8, num_classes=5, widths=(32, 64, 128, 256)), [64, 128, 256], 256),
    "resnet18": (lambda: ResNet(depth=18, num_classes=5), [64, 128, 256, 512], 512),
    "resnet50": (lambda: ResNet(depth=50, num_classes=5), [256, 512, 1024, 2048], 2048),
    "wrn": (lambda: WideResNet(depth=10, widen=2, num_classes=5), [32, 64, 128], 128),
    "vgg13": (lambda: VGG(depth=13, num_classes=5, pools=3), [128, 256, 512, 512], 512),
    "mobilenet": (lambda: MobileNetV2(num_classes=5, width=0.5), [12, 16, 48, 160], 1280),
    "mobilenet1": (lambda: MobileNetV1(num_classes=5, stride=1), [128, 256, 512, 1024], 1024),
    "shufflenet1": (lambda: ShuffleNetV1(num_classes=5), [240, 480, 960], 960),
    "shufflenet2": (lambda: ShuffleNetV2(num_classes=5), [116, 232, 464], 1024),
    "small": (lambda: SmallConvNet(num_classes=5, in_channels=3), [16, 32, 64], 64),
    "small-bn": (lambda: SmallConvNet(num_classes=5, in_channels=3, widths=(4, 8), batch_norm=True), [4, 8], 8),
    "lenet": (lambda: LeNet5(num_classes=5, in_channels=3), [6, 16, 120], 120),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_place_is_there_once(name: str) -> None:
    make, channels, width = NETWORKS[name]
    with torch.device("meta"):
        net = make().eval()
    paths = spread(net, ["@stem", "@blocks", "@before", "@pooled"])
    shapes = Taps(net, paths).measure(lambda: net(torch.empty(2, 3, 32, 32, device="meta")))
    assert [shapes[path][0] for path in spread(net, "@blocks")] == channels
    assert [shapes[path] for path in spread(net, ["@before"])] == [shapes[path] for path in spread(net, "@blocks")]
    assert shapes[spread(net, "@pooled")] == (width,)
    assert spread(net, "@pooled") == f"{spread(net, '@head')}:input"
    if name != "lenet":  # has no pooling of its own
        assert (
            Taps(net, [last := spread(net, "@map")]).measure(lambda: net(torch.empty(2, 3, 32, 32, device="meta")))[
                last
            ][0]
            == width
        )
    assert spread(net, "@blocks.-1") == spread(net, "@blocks")[-1]


@pytest.mark.parametrize("name", ["resnet8", "vgg13", "small-bn", "lenet", "mobilenet1"])
def test_a_block_is_what_was_there_before_after_its_activation(name: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name][0]().eval()
    taps = Taps(net, spread(net, ["@blocks", "@before"]))
    images = torch.randn(2, 3, 32, 32)
    taps.measure(lambda: net(images))
    found = taps.run(lambda: net(images))
    for block, before in zip(spread(net, "@blocks"), spread(net, "@before"), strict=True):
        assert found[before].min() < 0
        assert torch.equal(found[before].relu(), found[block])


def test_blocks_compute_what_torchvisions_do() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 8, 5, 5)
    for ours, theirs in ((_Basic(8, 8), torchvision_resnet.BasicBlock(8, 8)),
                         (_Bottleneck(8, 2), torchvision_resnet.Bottleneck(8, 2))):  # fmt: skip
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours(images), theirs(images))


def test_names_stand_beside_paths_and_unknown_ones_are_refused() -> None:
    net = SmallConvNet()
    assert spread(net, None) is None
    assert spread(net, "features.2:input") == "features.2:input"
    assert spread(net, "@pooled") == "head:input"
    assert spread(net, ["features.0", "@blocks.1", "@pooled"]) == ["features.0", "features.4", "head:input"]
    with pytest.raises(
        ConfigError, match="SmallConvNet names no place @block; it has @stem, @blocks, @before, @pooled"
    ):
        spread(net, "@block")
    with pytest.raises(ConfigError, match="@blocks of SmallConvNet are 3, numbered from 0"):
        spread(net, ["@blocks.3"])
    strange = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert spread(strange, "@pooled") == "1:input"
    with pytest.raises(ConfigError, match="it has @pooled, @head, and the paths of its modules"):
        spread(strange, "@blocks")
