from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning.networks.generators.generators import ConvGenerator, UpConv

SMALL: dict[str, Any] = {"latent": 5, "channels": 3, "size": 8, "ngf": 4}
STATISTICS: dict[str, Any] = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}


def grad(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def reference(tail: list[nn.Module], eps: float) -> tuple[nn.Linear, nn.Sequential]:
    """The generator of the papers, layer by layer, for SMALL."""
    layers = [
        nn.BatchNorm2d(8),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8, eps),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.BatchNorm2d(4, eps),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 3, 3, padding=1),
        *tail,
    ]
    return nn.Linear(5, 32), nn.Sequential(*layers)


def copy_parameters(source: nn.Module, *targets: nn.Module) -> None:
    with torch.no_grad():
        values = iter(source.parameters())
        for target in targets:
            for p in target.parameters():
                p.copy_(next(values))
    assert next(values, None) is None


TAILS: dict[str, Callable[[], list[nn.Module]]] = {
    "tanh_bn": lambda: [nn.Tanh(), nn.BatchNorm2d(3, affine=False)],
    "bn": lambda: [nn.BatchNorm2d(3)],
    "sigmoid": lambda: [nn.Sigmoid()],
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("eps", [0.8, 1e-5])
@pytest.mark.parametrize("tail", TAILS)
def test_generator_equals_the_papers_layers_and_leaves_data_units(
    tail: Literal["tanh_bn", "bn", "sigmoid"], eps: float, fast: bool
) -> None:
    torch.manual_seed(0)
    generator = ConvGenerator(**SMALL, tail=tail, eps=eps, fast=fast, **STATISTICS)
    for p in generator.parameters():
        nn.init.normal_(p)
    linear, rest = reference(TAILS[tail](), eps)
    copy_parameters(generator, linear, rest)
    z = torch.randn(16, 5)
    expected = rest(linear(z).view(16, 8, 2, 2))
    if tail != "sigmoid":
        expected = expected * torch.tensor(STATISTICS["std"])[:, None, None]
        expected = expected + torch.tensor(STATISTICS["mean"])[:, None, None]
    torch.testing.assert_close(generator(z), expected, atol=1e-5, rtol=1e-5)


def test_parameter_count_at_the_papers_size() -> None:
    generator = ConvGenerator(latent=100, channels=1, size=32, mean=[0.1307], std=[0.3081])
    hidden = 128 * 8 * 8
    count = 101 * hidden + 2 * 128 + (9 * 128 + 1) * 128 + 2 * 128 + (9 * 128 + 1) * 64 + 2 * 64 + (9 * 64 + 1)
    assert sum(p.numel() for p in generator.parameters()) == count
    assert generator(torch.randn(2, 100)).shape == (2, 1, 32, 32)


def test_height_and_width_are_free() -> None:
    torch.manual_seed(0)
    generator = ConvGenerator(**{**SMALL, "size": (8, 12)}, **STATISTICS)
    x = generator(torch.randn(4, 5))
    assert x.shape == (4, 3, 8, 12)
    square, wide = ConvGenerator(**SMALL, **STATISTICS), generator
    assert wide.project.out_features == square.project.out_features * 3 // 2
    wide.body.load_state_dict(square.body.state_dict())


GENERATORS: dict[str, tuple[dict[str, Any], int, float]] = {
    "dafl and rdskd, grey": ({"latent": 100, "channels": 1}, 1_049_985, 114.7),
    "dafl and rdskd, colour": ({"latent": 1000, "channels": 3}, 8_423_939, 123.2),
    "dfad": ({"latent": 256, "channels": 3, "eps": 1e-5}, 2_329_091, 117.1),
    "zskt": ({"latent": 100, "channels": 3, "tail": "bn", "eps": 1e-5}, 1_051_145, 115.8),
    "datafree": ({"latent": 256, "channels": 3, "tail": "sigmoid", "eps": 1e-5, "conv_bias": False}, 2_328_899, 117.1),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_the_papers_generators_have_their_size_and_cost(name: str) -> None:
    settings, parameters, millions = GENERATORS[name]
    statistics = {key: [0.5] * settings["channels"] for key in ("mean", "std")}
    generator = ConvGenerator(size=32, fast=False, **settings, **statistics).eval()
    assert sum(p.numel() for p in generator.parameters()) == parameters
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        generator(torch.randn(1, settings["latent"]))
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, abs=0.05)


def test_dafl_sets_eps_in_the_two_hidden_batch_norms_only() -> None:
    generator = ConvGenerator(**SMALL, **STATISTICS)
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.eps for m in norms] == [1e-5, 0.8, 0.8, 1e-5]
    assert [m.momentum for m in norms] == [0.1] * 4
    assert [m.affine for m in norms] == [True, True, True, False]


def test_images_have_the_mean_and_std_they_were_given() -> None:
    torch.manual_seed(0)
    generator = ConvGenerator(**SMALL, tail="bn", eps=1e-5, **STATISTICS)
    var, mean = torch.var_mean(generator(torch.randn(64, 5)), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.tensor(STATISTICS["mean"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(var.sqrt(), torch.tensor(STATISTICS["std"]), atol=1e-2, rtol=0)


def test_statistics_travel_with_the_weights() -> None:
    source = ConvGenerator(**SMALL, **STATISTICS)
    target = ConvGenerator(**SMALL, mean=[0.0] * 3, std=[1.0] * 3)
    target.load_state_dict(source.state_dict())
    z = torch.randn(4, 5)
    torch.testing.assert_close(target(z), source(z), atol=0, rtol=0)


def test_without_conv_bias_only_the_last_convolution_has_one() -> None:
    generator = ConvGenerator(**SMALL, tail="sigmoid", conv_bias=False)
    assert [m.bias is not None for m in generator.modules() if isinstance(m, nn.Conv2d)] == [False, False, True]
    x = generator(torch.randn(4, 5))
    assert x.min() > 0
    assert x.max() < 1


@pytest.mark.parametrize(
    "change",
    [{"size": 30}, {"size": 0}, {"size": (8, 6)}, {"tail": "relu"}, {"mean": None}, {"std": [1.0]}],
)
def test_impossible_generators_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=r"multiple of 4|unknown tail|one mean|one std"):
        ConvGenerator(**{**SMALL, **STATISTICS, **change})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_fast_up_convolution_equals_the_plain_one_borders_and_gradients_included(
    bias: bool, channels_last: bool
) -> None:
    torch.manual_seed(0)
    fast, plain = UpConv(3, 4, bias=bias), nn.Conv2d(3, 4, 3, padding=1, bias=bias)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 3, 5, 7)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = fast(a), plain(F.interpolate(b, scale_factor=2.0, mode="nearest"))
    direction = torch.randn_like(expected)
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    assert y.shape == (2, 4, 10, 14)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(grad(a), grad(b), atol=1e-5, rtol=0)
    torch.testing.assert_close(grad(fast.weight), grad(plain.weight), atol=5e-5, rtol=1e-5)
    if fast.bias is not None and plain.bias is not None:
        torch.testing.assert_close(grad(fast.bias), grad(plain.bias), atol=5e-5, rtol=1e-5)


def test_slow_and_fast_up_convolutions_share_weights_and_differ_in_cost() -> None:
    fast, slow = UpConv(3, 4), UpConv(3, 4, fast=False)
    slow.load_state_dict(fast.state_dict())
    x = torch.randn(1, 3, 6, 6)
    outputs, costs = [], []
    for layer in (fast, slow):
        with FlopCounterMode(display=False) as counter:
            outputs.append(layer(x))
        costs.append(counter.get_total_flops())
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0)
    assert costs[1] / costs[0] == 9 / 4
