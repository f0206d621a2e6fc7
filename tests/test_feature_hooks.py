"""Taps hold the values that were there, by paths as people write them, and a forward pass ends at the last one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.core.feature_hooks import capture
from kd_lightning.core.taps import Taps, find
from kd_lightning.errors import ConfigError


class Block(nn.Module):
    """A residual block with an activation in place and a sum in place."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.again = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        y = self.again(x)
        y += x
        return self.last(y)


class Net(nn.Module):
    """Two blocks and a head, which is run ``heads`` times."""

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Block(1, 4), Block(4, 6))
        self.head = nn.Linear(6, 3)
        self.unused = nn.Identity()
        self.heads, self.runs_of_head = heads, 0

    def forward(self, x: Tensor) -> Tensor:
        features = self.layer1(x).mean((2, 3))
        for _ in range(self.heads):
            self.runs_of_head += 1
            out = self.head(features)
        return out


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def values(net: nn.Module, images: Tensor, *paths: str, output: bool = True) -> dict[str, Tensor]:
    taps = Taps(net, paths)
    with torch.no_grad():
        taps.measure(lambda: net.eval()(images[:2]))
    return taps.run(lambda: net(images), output=output)


def test_beside_modules_in_place_a_tap_holds_the_value_that_was_there(images: Tensor) -> None:
    net = Net()
    seen = values(net, images, "layer1.0.relu:input", "layer1.0.relu", "layer1.0.again", "layer1.0.last")
    block = net.layer1[0]
    before = block.norm(block.conv(images))
    assert before.min() < 0
    torch.testing.assert_close(seen["layer1.0.relu:input"], before)
    torch.testing.assert_close(seen["layer1.0.relu"], before.relu())
    torch.testing.assert_close(seen["layer1.0.again"], block.again(before.relu()))  # before the sum in place
    seen["layer1.0.relu:input"].sum().backward()
    assert net.layer1[0].conv.weight.grad is not None
    with capture(net, inputs=("layer1.0.relu",)) as taps, torch.no_grad():
        net(images)
    torch.testing.assert_close(taps["layer1.0.relu"], before)


def test_what_nothing_overwrites_is_not_copied(images: Tensor) -> None:
    net = Net()
    taps = Taps(net, ["layer1.0.relu:input", "layer1.1", "layer1.0.again"])
    with torch.no_grad():
        taps.measure(lambda: net.eval()(images))
    assert taps.overwritten == {"layer1.0.relu:input", "layer1.0.again"}


def test_numbers_may_count_from_the_last() -> None:
    net = Net()
    assert find(net, "layer1.-1.relu:input") == ("layer1.1.relu", "input")
    assert find(net, "layer1.-2") == ("layer1.0", "output")
    assert find(net, "-1:output") == ("unused", "output")


@pytest.mark.parametrize(
    ("path", "said"),
    {
        "layer2": r"Net has no layer2; did you mean layer1 or .* It has layer1, head, unused",
        "layer1.0.rely": r"did you mean layer1\.0\.relu or .*It has layer1\.0\.conv, layer1\.0\.norm",
        "layer1.-3": "did you mean layer1",
        "head.weight": "head has no parts",
        "head:in": "expected head:input or head:output",
    }.items(),
)
def test_a_wrong_path_is_named_with_the_nearest_right_ones(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Taps(Net(), [path])


@pytest.mark.parametrize(
    ("path", "heads", "said"), [("unused", 1, "unused: .* is not run"), ("head", 2, "head: .* runs 2 times")]
)
def test_a_tap_fires_once(images: Tensor, path: str, heads: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        values(Net(heads), images, path)


def test_a_forward_pass_ends_at_the_last_tap(images: Tensor) -> None:
    net = Net()
    seen = values(net, images, "layer1.0", "layer1.1.norm", output=False)
    assert net.runs_of_head == 1  # when it was measured
    assert seen.keys() == {"layer1.0", "layer1.1.norm"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert values(net, images, "layer1.0")["output"].shape == (5, 3)
    assert Taps(net, []).run(lambda: net(images), output=False) == {}
