"""Networks of few labels: shapes, first activations, labels that reach every layer, and no statistic of a batch."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.networks import head_of
from kd_lightning.networks.classifiers.noisy import NoisyConv, NoisyMlp
from kd_lightning.networks.generators.pairs import ConvPairs, DeconvImages, MlpImages, MlpPairs
from kd_lightning.networks.weight_norm import GaussianNoise, weight_normed


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def small_conv() -> NoisyConv:
    return NoisyConv(widths=(8, 12))


@pytest.mark.parametrize(
    ("net", "shape"), [(NoisyMlp(widths=(40, 30), noise=(0.1, 0.1)), (1, 28, 28)), (small_conv(), (3, 32, 32))]
)
def test_classifiers_see_an_image_whatever_is_beside_it(net: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.rand(6, *shape)
    assert not any(isinstance(m, _BatchNorm) for m in net.modules())
    logits = net.eval()(x)
    assert logits.shape == (6, 10)
    torch.testing.assert_close(net(x[:2]), logits[:2])
    assert not torch.equal(net.train()(x), logits)
    again = copy.deepcopy(net).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), logits)
    assert head_of(net) == "head"


def test_the_papers_classifiers() -> None:
    wide = [784, 1000, 500, 250, 250, 250, 10]
    assert parameters(NoisyMlp(weight_norm=False)) == sum((a + 1) * b for a, b in pairwise(wide))
    net = NoisyConv()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [64, 64, 64, 128, 128, 128, 128, 128, 128]
    assert net.features(torch.rand(2, 3, 32, 32)).shape == (2, 128)


def test_weight_norm_begins_with_the_size_of_the_input() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 300).relu()
    layer = weight_normed(nn.Linear(300, 200))
    out = layer(x).detach().relu()
    assert float(out.square().mean() / x.square().mean()) == pytest.approx(1.0, rel=0.15)
    before = layer.weight.detach().norm(dim=1)
    with torch.no_grad():
        layer.parametrizations.weight.original1.mul_(7)  # the direction's length is not the weight's
    torch.testing.assert_close(layer.weight.norm(dim=1), before)
    up = weight_normed(nn.ConvTranspose2d(6, 4, 3))
    assert up.parametrizations.weight.original0.shape == (1, 4, 1, 1)  # a length for each of the outputs
    plain = weight_normed(nn.Linear(3, 2), on=False)
    assert not hasattr(plain, "parametrizations")


def test_noise_has_its_deviation_in_training() -> None:
    torch.manual_seed(0)
    noise, x = GaussianNoise(0.3), torch.zeros(20000)
    assert float(noise(x).std()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(noise.eval()(x), x)
    assert "std=0.3" in repr(noise)


@pytest.mark.parametrize(
    ("good", "bad", "shape"),
    [
        (MlpImages(hidden=(20,)), MlpImages(hidden=(20,), num_classes=0), (1, 28, 28)),
        (DeconvImages(hidden=(16, 8, 8)), DeconvImages(hidden=(16, 8, 8), num_classes=0), (3, 32, 32)),
    ],
)
def test_generators(good: nn.Module, bad: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    z = torch.rand(5, 100)
    for net in (good, bad):
        images = net(z) if net is bad else net(z, torch.arange(5))
        assert images.shape == (5, *shape)
        assert 0 <= images.min() < images.max() <= 1
    good.eval()
    assert not torch.equal(good(z, torch.zeros(5, dtype=torch.long)), good(z, torch.ones(5, dtype=torch.long)))


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 maps make images of side 32, not size=28"):
        DeconvImages(size=28)
    with pytest.raises(ValueError, match="size=30: expected a multiple of 4"):
        ConvPairs(size=30)


@pytest.mark.parametrize(
    ("net", "shape"), [(MlpPairs(widths=(30, 20)), (1, 28, 28)), (ConvPairs(widths=(8, 8)), (3, 32, 32))]
)
def test_a_pair_is_an_image_and_a_label(net: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(4, *shape), torch.arange(4)
    assert not any(isinstance(m, _BatchNorm) for m in net.modules())
    scores = net.eval()(x, y)
    assert scores.shape == (4,)
    torch.testing.assert_close(net(x[1:2], y[1:2]), scores[1:2])
    assert not torch.isclose(net(x, (y + 1) % 4), scores).any()
    # the label stands before every layer
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    widths = [m.in_features if isinstance(m, nn.Linear) else m.in_channels for m in layers]
    expected = {MlpPairs: [784, 30, 20], ConvPairs: [3, 8, 8, 8, 8]}[type(net)]
    assert widths == [w + 10 for w in expected]
