"""Networks of conditional GANs: as large as the papers', and functions of a latent and a label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.networks.density_ratio import RatioMlp, RatioNetwork
from kd_lightning.networks.features import FeatureClassifier, SparseAutoEncoder
from kd_lightning.networks.generators import biggan, biggan_deep_pair, gan_blocks, sagan
from kd_lightning.networks.generators.gan_blocks import Layers, SelfAttention
from kd_lightning.networks.label_embedding import ConvTrunk, ImageToLabel, LabelToHidden, ResNetTrunk


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


PAPERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "BigGAN's generator": (lambda: biggan.BigGanGenerator(num_classes=100), 4_580_867),
    "BigGAN's discriminator": (lambda: biggan.BigGanDiscriminator(num_classes=100), 4_230_401),
    "BigGAN-deep's generator": (
        lambda: biggan_deep_pair.BigGanDeepSmallGenerator(num_classes=1000),
        50_388_609 - 125 * (128 * 9 + 1),
    ),
    "BigGAN-deep's discriminator": (
        lambda: biggan_deep_pair.BigGanDeepSmallDiscriminator(num_classes=1000),
        34_590_210,
    ),
    "SAGAN's generator": (lambda: sagan.SaganGenerator(embedding=nn.Identity()), 15_070_052),
    "SAGAN's discriminator": (lambda: sagan.SaganDiscriminator(embedding=nn.Identity()), 21_660_466),
    "T1": (lambda: ImageToLabel(ResNetTrunk()), 21_610_945),
    "T2": (LabelToHidden, 67_328),
    "features of classes": (lambda: FeatureClassifier(ResNetTrunk(first=1), num_classes=100), 26_296_484),
    "psi of classes": (lambda: RatioMlp(3072 + 100, widths=(2048, 1024, 512, 256, 128)), 9_300_000),
    "psi of ImageNet-100": (lambda: RatioMlp(49152 + 100, widths=(2048, 1024, 512, 256, 128)), 103_700_000),
    "psi of numbers": (lambda: RatioMlp(12288 + 128, widths=(1024, 512, 256, 128, 64)), 13_400_000),
}


@pytest.mark.parametrize("name", PAPERS)
def test_as_many_parameters_as_the_papers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan_blocks, "spectral_norm", lambda layer, **_: layer)  # adds none, and takes its time
    make, wanted = PAPERS[name]
    with torch.device("meta"):
        found = count(make())
    assert found == wanted if wanted % 1000 else abs(found - wanted) < 0.005 * wanted


def small(kind: str, **changes: Any) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A generator of 16x16, its discriminator, and labels."""
    torch.manual_seed(0)
    if kind == "biggan":
        settings = {"num_classes": 5, "channels": 2, "size": 16}
        g: nn.Module = biggan.BigGanGenerator(**settings, latent=6, widths=(16, 8, 8))
        d: nn.Module = biggan.BigGanDiscriminator(**settings, widths=(8, 8, 16), final=8)
        return g, d, torch.arange(8) % 5
    if kind == "biggan_deep":
        settings = {"num_classes": 5, "channels": 2, "size": 16, "attention": 8}
        g = biggan_deep_pair.BigGanDeepSmallGenerator(**settings, latent=6, embed=3, widths=(16, 16, 8))
        return g, biggan_deep_pair.BigGanDeepSmallDiscriminator(**settings, widths=(8, 16, 16)), torch.arange(8) % 5
    embedding = LabelToHidden(embed=64)  # of 8 every group has one value, and its norm makes that 0
    settings = {"embedding": embedding, "embed": 64, "channels": 2, "size": 16, "attention": 8}
    g = sagan.SaganGenerator(**settings, latent=6, widths=(16, 8, 8), momentum=0.1)
    return g, sagan.SaganDiscriminator(**settings, widths=(8, 8, 16)), torch.linspace(0, 1, 8)


@pytest.mark.parametrize("kind", ["biggan", "biggan_deep", "sagan"])
def test_a_function_of_latent_and_label(kind: str) -> None:
    g, d, y = small(kind)
    z = torch.randn(8, 6)
    g(z, y)
    g.eval()
    d.eval()
    x = g(z, y)
    assert x.shape == (8, 2, 16, 16)
    assert x.min() >= 0
    assert x.max() <= 1
    assert d(x, y).shape == (8,)
    for other in (g(z, y.roll(1)), g(-z, y)):
        assert (other - x).abs().amax((1, 2, 3)).min() > 0
    assert (d(x, y.roll(1)) - d(x, y)).abs().min() > 0
    torch.testing.assert_close(g(z[:3], y[:3]), x[:3])  # in eval mode an image does not depend on the others


@pytest.mark.parametrize("kind", ["biggan", "biggan_deep", "sagan"])
def test_gradients_reach_every_weight(kind: str) -> None:
    g, d, y = small(kind)
    for net in (g, d):
        for module in net.modules():
            if isinstance(module, SelfAttention):
                nn.init.ones_(module.scale)
    d(g(torch.randn(8, 6), y), y).sum().backward()
    for net in (g, d):
        for name, p in net.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name


def test_a_deep_block_carries_the_channels_that_it_does_not_make() -> None:
    torch.manual_seed(0)
    layers, x = Layers("orthogonal"), torch.randn(2, 8, 4, 4)
    up = gan_blocks.BottleneckUpBlock(8, 4, layers=layers, norm=Plain, double=True)
    down = biggan_deep_pair._Down(8, 12, layers=layers, halve=True)
    for last in (up.convs[-1], down.out):
        last.parametrizations.weight.original.data.zero_()  # type: ignore[union-attr]
        last.bias.data.zero_()  # type: ignore[union-attr]
        last.eval()
        nn.utils.parametrize.remove_parametrizations(last, "weight", leave_parametrized=False)
    torch.testing.assert_close(up(x, None), x[:, :4].repeat_interleave(2, 2).repeat_interleave(2, 3))
    half = nn.functional.avg_pool2d(x, 2)
    made = down(x)
    torch.testing.assert_close(made[:, :8], half)
    assert made.shape == (2, 12, 2, 2)
    assert made[:, 8:].abs().min() > 0


class Plain(nn.BatchNorm2d):
    """BatchNorm that takes no notice of the condition."""

    def forward(self, x: torch.Tensor, condition: Any = None) -> torch.Tensor:
        return super().forward(x)


def test_spectral_norm_holds_the_largest_singular_value_at_one_and_rests_in_eval_mode() -> None:
    torch.manual_seed(0)
    layers = Layers("normal")
    for layer, size in (
        (layers.conv(4, 8), (2, 4, 5, 5)),
        (layers.linear(6, 3), (2, 6)),
        (layers.embedding(5, 4), None),
    ):
        x = torch.tensor([0, 4]) if size is None else torch.randn(size)
        for _ in range(30):
            layer(x)
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2) == pytest.approx(1, abs=1e-3)  # type: ignore[operator,union-attr]
        state = {k: v.clone() for k, v in layer.state_dict().items()}
        layer.eval()(x)
        assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())


def test_attention_begins_as_nothing_and_equals_the_papers_formula() -> None:
    torch.manual_seed(0)
    attend = SelfAttention(16, layers=Layers("xavier", zero_bias=True), bias=True).eval()
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(attend(x), x)
    nn.init.constant_(attend.scale, 0.5)
    pool = nn.MaxPool2d(2)
    theta, phi, g = attend.query(x).flatten(2), pool(attend.key(x)).flatten(2), pool(attend.value(x)).flatten(2)
    weights = torch.softmax(torch.einsum("bci,bcj->bij", theta, phi), 2)
    seen = torch.einsum("bcj,bij->bci", g, weights).view(2, 8, 6, 6)
    torch.testing.assert_close(attend(x), x + 0.5 * attend.out(seen))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: biggan.BigGanGenerator(num_classes=2, size=24), "4 times a power of 2, got 24"),
        (lambda: biggan.BigGanDiscriminator(num_classes=2, size=16, final=12), "12 times a power of 2, got 16"),
        (
            lambda: biggan.BigGanGenerator(num_classes=2, size=16, widths=(8, 8)),
            r"has 3 maps at this size: .* got \[8, 8\]",
        ),
        (
            lambda: biggan_deep_pair.BigGanDeepSmallGenerator(num_classes=2, widths=(8, 8, 8, 8, 8, 16)),
            "drops channels and adds none",
        ),
        (
            lambda: biggan_deep_pair.BigGanDeepSmallDiscriminator(num_classes=2, widths=(8, 8, 8, 8, 8, 4)),
            "adds channels and drops none",
        ),
        (lambda: sagan.SaganDiscriminator(embedding=nn.Identity(), size=16), "has 3 maps at this size"),
        (lambda: SparseAutoEncoder(size=20), "4 times a power of 2, got 20"),
    ],
)
def test_sizes_that_do_not_fit(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("size", [8, 16, 32])
def test_the_sparse_auto_encoder_redraws_at_any_size(size: int) -> None:
    net = SparseAutoEncoder(channels=1, size=size, width=8, features=24, hidden=(16, 8))
    x = torch.randn(4, 1, size, size)
    code = net.encode(x)
    assert code.shape == (4, 24)
    assert code.min() >= 0
    redrawn = net.decoder(code)
    assert redrawn.shape == x.shape
    assert redrawn.abs().max() <= 1
    assert net(x).shape == (4, 1)


def test_the_papers_encoder_has_the_papers_channels() -> None:
    with torch.device("meta"):
        net = SparseAutoEncoder()
    channels = [m.out_channels for m in net.encoder if isinstance(m, nn.Conv2d)]
    assert channels == [64, 64, 64, 128, 128, 256, 256, 256]


def test_a_fresh_t1_is_not_dead() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        net = ImageToLabel(ConvTrunk(in_channels=1, size=8, widths=(4, 8)), embed=8, hidden=8)
        assert (net(torch.randn(32, 1, 8, 8)) > 0).any()


def small_ratio() -> RatioNetwork:
    torch.manual_seed(0)
    phi = FeatureClassifier(ConvTrunk(in_channels=1, size=8, widths=(4, 8)), num_classes=3, features=12, hidden=(8,))
    settings: dict[str, Any] = {"mean": [0.3], "std": [0.4], "widths": (32, 32), "dropout": 0.5}
    return RatioNetwork(features=phi, feature_dim=12, labels=nn.Embedding(3, 3), label_dim=3, **settings)


def test_a_fresh_ratio_is_near_one_and_its_extractor_rests() -> None:
    net = small_ratio().train()
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 3
    before = {k: v.clone() for k, v in net.features.state_dict().items()}
    ratios = net(x, y)
    assert ratios.shape == (64,)
    assert ratios.min() >= 0
    assert 0.5 < ratios.mean().item() < 1.5
    ratios.sum().backward()
    assert all(p.grad is None for p in net.features.parameters())
    assert all(p.grad is not None for p in [*net.psi.parameters(), *net.labels.parameters()])
    assert all(torch.equal(v, before[k]) for k, v in net.features.state_dict().items())
    net.eval()
    assert (net(x, y) - net(x, (y + 1) % 3)).abs().max() > 1e-2


def test_a_ratio_of_groups_of_one_value_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8 from 16 on, got 8"):
        RatioMlp(4, widths=(16, 8))
