"""BigGAN-deep, U2-Net and TinyGAN have the sizes of their authors' networks and compute what those do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kd_lightning.networks.generators import biggan_deep, gan_blocks, tiny_gan
from kd_lightning.networks.generators.u2net import U2Net

STEPS = ((False, 16, 16), (True, 16, 8), (True, 8, 4), (True, 4, 2), (False, 2, 1))
DIGITS: dict[str, Any] = {"num_classes": 10, "latent": 32, "size": 32, "repeat": 3, "embed": 16}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are built in no time, of whatever was in memory; on the meta device spectral norm takes a minute."""
    monkeypatch.setitem(gan_blocks.INITS, "normal", lambda weight: weight)
    monkeypatch.setattr(parametrizations._SpectralNorm, "_power_method", lambda *_: None)
    for layer in (nn.Linear, nn.Conv2d):
        monkeypatch.setattr(layer, "reset_parameters", lambda _: None)


def small_biggan(**settings: Any) -> biggan_deep.BigGanDeepGenerator:
    """Of random weights, and of statistics that differ from row to row."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"size": 32, "num_classes": 10, "latent": 16, "ch": 8, "layers": STEPS, "attention": 2}
    net = biggan_deep.BigGanDeepGenerator(**small | settings).eval()
    for name, table in net.named_buffers():
        if name.endswith("running_means"):
            table.copy_(0.2 * torch.randn(table.shape))
        elif name.endswith("running_vars"):
            table.copy_(0.5 + torch.rand(table.shape))
    return net


def tiny(**settings: Any) -> tiny_gan.TinyGenerator:
    torch.manual_seed(0)
    return tiny_gan.TinyGenerator(**DIGITS | {"conv_dim": 8} | settings)


@pytest.mark.parametrize(
    ("size", "parameters", "buffers", "names"),
    [(128, 50_388_609, 2_298_816, 506), (256, 55_880_833, 2_692_352, 602), (512, 56_163_905, 2_744_960, 698)],
)
@pytest.mark.usefixtures("unset")
def test_biggan_deep_is_as_large_as_the_published_one(size: int, parameters: int, buffers: int, names: int) -> None:
    net = biggan_deep.BigGanDeepGenerator(size=size)
    assert (count(net), sum(b.numel() for b in net.buffers())) == (parameters, buffers)
    assert len(net.state_dict()) == names


@pytest.mark.usefixtures("unset")
def test_so_is_each_part_of_it() -> None:
    net = biggan_deep.BigGanDeepGenerator()
    blocks = [8_654_336] * 3 + [8_129_024] + [2_623_232] * 3 + [2_491_648, 327_681, 885_632, 852_608, 336_320, 328_000]
    assert [count(layer) for layer in net.layers] == blocks
    assert count(net.embeddings) == 128_000
    assert count(net.gen_z) == 8_421_376
    assert net.weight.numel() + net.bias.numel() == 256
    assert count(net.conv_to_rgb) == 147_584


def test_a_small_biggan_deep() -> None:
    net = small_biggan()
    assert count(net) == 174_469
    x = net(torch.randn(3, 16), torch.tensor([0, 4, 9]), 0.5)
    assert x.shape == (3, 3, 32, 32)
    assert 0 <= x.min() < 0.4 < 0.6 < x.max() <= 1


@pytest.mark.parametrize("training", [False, True])
def test_an_image_of_biggan_deep_does_not_depend_on_its_neighbours(training: bool) -> None:
    net, z, y = small_biggan(), torch.randn(4, 16), torch.tensor([3, 1, 4, 1])
    alone = net(z[2:3], y[2:3]) if not training else small_biggan().train()(z[2:3], y[2:3])
    together = net.train(training)(z, y)
    torch.testing.assert_close(together[2:3], alone)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("truncation", "reference", "linear"),
    [(1.0, 50, 50), (0.5, 25, 25), (0.3, 15, 15), (0.505, 25.75, 25.25), (0.14, 8, 7), (0.58, 28, 29)],
)
def test_rows_of_the_norms_statistics(truncation: float, reference: float, linear: float) -> None:
    for interpolation, row in (("reference", reference), ("linear", linear)):
        net = small_biggan(interpolation=interpolation)
        for name, table in net.named_buffers():
            if "running" in name:
                table.copy_(torch.arange(51.0)[:, None].expand_as(table))
        for statistics in (net.bn, net.layers[0].norms[1].statistics):
            for found in statistics(truncation):
                torch.testing.assert_close(found, torch.full_like(found, row), atol=1e-4, rtol=0)


@pytest.mark.parametrize("truncation", [0.0, -0.1, 1.01])
def test_truncations_that_have_no_statistics_are_refused(truncation: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        small_biggan()(torch.zeros(1, 16), torch.tensor([0]), truncation)


def test_the_truncation_changes_the_image() -> None:
    net, z, y = small_biggan(), torch.randn(1, 16), torch.tensor([2])
    assert (net(z, y, 0.5) - net(z, y, 1.0)).abs().max() > 0.01


def test_soft_labels_mix_the_vectors_of_the_classes() -> None:
    net, z = small_biggan(), torch.randn(2, 16)
    soft = 0.25 * F.one_hot(torch.tensor([3, 3]), 10) + 0.75 * F.one_hot(torch.tensor([7, 7]), 10)
    torch.testing.assert_close(net(z, F.one_hot(torch.tensor([3, 7]), 10).float()), net(z, torch.tensor([3, 7])))
    mixed = net(z, soft)
    rows = net.embeddings.weight.data
    rows[:, 5] = 0.25 * rows[:, 3] + 0.75 * rows[:, 7]
    torch.testing.assert_close(mixed, net(z, torch.tensor([5, 5])))
    assert (mixed - net(z, torch.tensor([3, 3]))).abs().max() > 1e-4


def test_the_first_map_has_its_channels_last() -> None:
    net = small_biggan()
    seen: list[Tensor] = []
    net.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z, y = torch.randn(2, 16), torch.tensor([1, 2])
    net(z, y)
    flat = net.gen_z(torch.cat([z, net.embeddings.weight.T[y]], 1))
    for channel, row, column in ((0, 0, 1), (5, 2, 3), (127, 3, 0)):
        torch.testing.assert_close(seen[0][:, channel, row, column], flat[:, (row * 4 + column) * 128 + channel])


def test_a_block_is_what_the_paper_says() -> None:
    """By hand, in another order of operations: drops channels, doubles after the second norm."""
    net = small_biggan()
    block = net.layers[1]
    x, c = torch.randn(2, 128, 4, 4), torch.randn(2, 32)

    def norm(i: int, h: Tensor) -> Tensor:
        layer = block.norms[i]
        mean, variance = (
            t[None, :, None, None] for t in (layer.statistics.running_means[25], layer.statistics.running_vars[25])
        )
        scale, offset = (linear(c)[..., None, None] for linear in (layer.scale, layer.offset))
        return torch.relu((h - mean) / (variance + 1e-4).sqrt() * (1 + scale) + offset)

    twice = lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    h = block.convs[0](norm(0, x))
    h = block.convs[2](norm(2, block.convs[1](twice(norm(1, h)))))
    torch.testing.assert_close(block(x, c, 0.5), block.convs[3](norm(3, h)) + twice(x[:, :64]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 64}, "reach 32 pixels, size says 64"),
        ({"layers": None}, r"sizes \[128, 256, 512\], got 32"),
        ({"layers": ((True, 16, 4), (True, 4, 2), (True, 2, 1))}, "halves"),
        ({"layers": ((True, 8, 8), (True, 8, 4), (True, 4, 4))}, "begin at 16"),
        ({"layers": ((True, 16, 8), (True, 8, 4), (True, 4, 2))}, "end at 1"),
        ({"ch": 2}, "at least 3"),
        ({"attention": 5}, "one of 5"),
        ({"interpolation": "cubic"}, "cubic"),
    ],
)
def test_layers_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small_biggan(**settings)


@pytest.mark.usefixtures("unset")
def test_u2nets_are_as_large_as_the_published_ones() -> None:
    net, small = U2Net(), U2Net(mids=16, outs=64)
    assert count(net) == 44_009_869
    assert count(small) == 1_131_181
    assert len(net.state_dict()) == len(small.state_dict()) == 798
    assert count(net.encoder[0]) == 206_016
    assert count(net.encoder[4]) == 10_034_688


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 50)])
def test_u2net_answers_for_every_pixel(size: tuple[int, int]) -> None:
    net = U2Net(mids=4, outs=8).eval()
    saliency = net(torch.rand(2, 3, *size))
    assert saliency.shape == (2, 1, *size)
    assert 0 < saliency.min() <= saliency.max() < 1


def test_u2net_sees_an_image_as_generators_end() -> None:
    net = U2Net(mids=4, outs=8).eval()
    seen: list[Tensor] = []
    net.encoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert seen[0][0, :, 0, 0].tolist() == [-1, 0, 1]


def test_u2net_enlarges_as_cgn_does_or_as_its_authors_do() -> None:
    torch.manual_seed(0)
    net, authors = U2Net(mids=4, outs=8).eval(), U2Net(mids=4, outs=8, align_corners=False).eval()
    authors.load_state_dict(net.state_dict())
    for side in (*net.sides, *authors.sides):
        side.weight.data.mul_(10)
    x = torch.rand(1, 3, 32, 32)
    assert (net(x) - authors(x)).abs().max() > 1e-3
    stages = [module.align_corners for module in net.modules() if hasattr(module, "align_corners")]
    assert stages == [True] * 12


def test_a_stage_of_u2net_by_hand() -> None:
    """Four levels: pooled twice, a wider bottom, and back up to every level's size."""
    torch.manual_seed(0)
    stage = U2Net(mids=4, outs=8).eval().encoder[3]
    x = torch.randn(1, 8, 10, 7)
    up = lambda t, like: F.interpolate(t, size=like.shape[2:], mode="bilinear", align_corners=True)  # noqa: E731
    entered = stage.enter(x)
    one = stage.down[0](entered)
    two = stage.down[1](F.max_pool2d(one, 2, ceil_mode=True))
    three = stage.down[2](F.max_pool2d(two, 2, ceil_mode=True))
    h = stage.up[0](torch.cat([stage.down[3](three), three], 1))
    h = stage.up[1](torch.cat([up(h, two), two], 1))
    torch.testing.assert_close(stage(x), stage.up[2](torch.cat([up(h, one), one], 1)) + entered)
    assert [conv[0].dilation[0] for conv in stage.down] == [1, 1, 1, 2]
    assert three.shape[2:] == (3, 2)


def test_the_deepest_stages_of_u2net_do_not_pool() -> None:
    net = U2Net(mids=4, outs=8)
    for stage in (net.encoder[4], net.encoder[5], net.decoder[0]):
        assert not stage.pooled
        assert [conv[0].dilation[0] for conv in (*stage.down, *stage.up)] == [1, 2, 4, 8, 4, 2, 1]
    assert all(stage.pooled for stage in (*net.encoder[:4], *net.decoder[1:]))
    assert [len(stage.down) for stage in (*net.encoder, *net.decoder)] == [7, 6, 5, 4, 4, 4, 4, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 3_070_659),
        ({"size": 256}, 6_240_963),
        ({"size": 64, "latent": 42}, 2_101_955),
        ({"conv_dim": 16}, 1_293_923),
        ({"conv_dim": 64}, 8_456_579),
        (DIGITS | {"conv_dim": 8}, 28_115),
        (DIGITS | {"conv_dim": 16}, 65_411),
        (DIGITS | {"conv_dim": 4}, 12_971),
    ],
)
@pytest.mark.usefixtures("unset")
def test_tiny_generators_are_as_large_as_the_authors(settings: dict[str, Any], parameters: int) -> None:
    net = tiny_gan.TinyGenerator(**{"num_classes": 1000} | settings)
    assert count(net) == parameters


@pytest.mark.usefixtures("unset")
def test_so_are_their_blocks() -> None:
    net = tiny_gan.TinyGenerator(num_classes=1000)
    assert [count(block) for block in net.blocks] == [1_062_400, 534_272, 185_216, 72_128, 30_944]
    assert (count(net.embedding), count(net.fc), count(net.bn), count(net.colorize)) == (128_000, 1_056_768, 64, 867)


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 3_300_321),
        ({"conv_dim": 64}, 12_171_201),
        ({"num_classes": 10, "conv_dim": 16, "repeat": 3}, 42_545),
    ],
)
@pytest.mark.usefixtures("unset")
def test_tiny_discriminators_are_as_large_as_the_authors(settings: dict[str, Any], parameters: int) -> None:
    net = tiny_gan.TinyDiscriminator(**{"num_classes": 1000} | settings)
    assert count(net) == parameters


@pytest.mark.parametrize("channels", [1, 3])
def test_tiny_images_and_verdicts(channels: int) -> None:
    g, y = tiny(channels=channels), torch.tensor([0, 3, 9])
    x = g(torch.randn(3, 32), y)
    assert x.shape == (3, channels, 32, 32)
    assert 0 <= x.min() < 0.4 < 0.6 < x.max() <= 1
    d = tiny_gan.TinyDiscriminator(num_classes=10, conv_dim=16, repeat=3, channels=channels)
    score, features = d(x, y)
    assert score.shape == (3,)
    assert [tuple(f.shape) for f in features] == [(3, 16, 16, 16), (3, 32, 8, 8), (3, 64, 4, 4)]
    assert min(f.min() for f in features) < 0


def test_a_tiny_generator_begins_without_labels() -> None:
    g, z = tiny().eval(), torch.randn(2, 32)
    torch.testing.assert_close(g(z, torch.tensor([0, 1])), g(z, torch.tensor([7, 4])))
    g(z, torch.tensor([0, 1])).sum().backward()
    assert all(m.embed.weight.grad.abs().max() > 0 for m in g.modules() if hasattr(m, "embed")), "never with them"


@pytest.mark.parametrize(("norm", "summed"), [("cbn0", 16), ("cbn1", 8)])
def test_gain_and_bias_begin_at_1_and_0_or_as_the_code_has_them(norm: str, summed: int) -> None:
    for cbn_init in ("fixed", "reference"):
        g = tiny(cbn_init=cbn_init)
        layer = getattr(g.blocks[2], norm).embed  # of 16 or 8 channels; a class's vector has 16 values
        layer.bias.data -= layer.bias.data if cbn_init == "reference" else 0
        gain, bias = layer(g.embedding.weight).chunk(2, 1)
        if cbn_init == "fixed":
            assert torch.equal(gain, torch.ones_like(gain))
            assert torch.equal(bias, torch.zeros_like(bias))
        else:
            torch.testing.assert_close(gain, bias)
            torch.testing.assert_close(gain, g.embedding.weight[:, :summed].sum(1, keepdim=True).expand_as(gain))


def test_a_tiny_block_by_hand() -> None:
    torch.manual_seed(0)
    block = tiny(cbn_init="reference").eval().blocks[1]
    x, c = torch.randn(2, 32, 5, 5), torch.randn(2, 16)
    for norm in (block.cbn0, block.cbn1):
        norm.bn.running_mean.normal_()

    def normed(norm: nn.Module, h: Tensor) -> Tensor:
        gain, bias = norm.embed(c).unflatten(1, (2, -1)).unbind(1)
        mean, variance = norm.bn.running_mean[:, None, None], norm.bn.running_var[:, None, None]
        return torch.relu(gain[..., None, None] * (h - mean) / (variance + 1e-5).sqrt() + bias[..., None, None])

    twice = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    h = block.pw_conv1(block.dw_conv1(twice(normed(block.cbn0, x))))
    h = block.pw_conv2(block.dw_conv2(normed(block.cbn1, h)))
    torch.testing.assert_close(block(x, c), h + block.c_sc(twice(x)))


def test_a_tiny_verdict_is_linear_in_the_sum_of_the_last_map() -> None:
    torch.manual_seed(0)
    d, x, y = (
        tiny_gan.TinyDiscriminator(num_classes=10, conv_dim=8, repeat=2).eval(),
        torch.rand(2, 3, 8, 8),
        torch.tensor([4, 6]),
    )
    score, features = d(x, y)
    h = features[-1].flatten(2).sum(2)
    torch.testing.assert_close(score, h @ d.fc_src.weight[0] + d.fc_src.bias + (h * d.embedding.weight[y]).sum(1))
    first = F.leaky_relu(d.layers[0](2 * x - 1), 0.01)
    torch.testing.assert_close(features[0], first)


def test_weights_of_a_tiny_discriminator_have_norm_1() -> None:
    torch.manual_seed(0)
    d = tiny_gan.TinyDiscriminator(num_classes=10, conv_dim=8, repeat=2)
    for _ in range(30):
        d(torch.rand(1, 3, 8, 8), torch.tensor([0]))
    for layer in (*d.eval().layers, d.fc_src, d.embedding):
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        torch.testing.assert_close(norm, torch.ones(()), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("settings", "said"), [({"size": 36}, "multiple of 8, got 36"), ({"cbn_init": "none"}, "got 'none'")]
)
def test_tiny_generators_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny(**settings)


@pytest.mark.usefixtures("unset")
def test_how_much_smaller_the_students_are() -> None:
    """CGN's three BigGANs and U2-Net against three of TinyGAN: 11.3; one texture 8.95, the shape 16.0."""
    big, saliency = count(biggan_deep.BigGanDeepGenerator()), count(U2Net())
    student = count(tiny_gan.TinyGenerator(num_classes=1000, size=256))
    assert 3 * big + saliency == 211_652_368
    assert 4 * big + saliency == 267_533_201
    assert round(big / student, 2) == 8.95
    assert round((big + saliency) / student, 1) == 16.0
    assert round((3 * big + saliency) / (3 * student), 1) == 11.3
