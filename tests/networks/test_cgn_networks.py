"""CGN of digits: counts, ranges, mechanisms that share no more than latents and a label, and textures of no place."""

import math

import pytest
import torch
from torch import nn

from kd_lightning.losses.counterfactual import compose
from kd_lightning.networks.generators.cgn import (
    HIGHEST,
    LOWEST,
    MECHANISMS,
    CgnGenerator,
    ConvDiscriminator,
    LinearDiscriminator,
    ProjectionDiscriminator,
    Together,
    shifted,
)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def inputs(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(1)), torch.arange(n)


def test_counts_are_those_of_the_authors_networks() -> None:
    cgn = CgnGenerator()
    assert [count(net) for net in (cgn, cgn.shape, cgn.fg, cgn.bg)] == [659_992, 194_914, 232_489, 232_489]
    assert len(cgn.state_dict()) == 57
    assert count(LinearDiscriminator()) == 2_104_421
    assert count(ConvDiscriminator()) == 413_642
    assert count(CgnGenerator(ngf=16)) == 297_800
    assert count(CgnGenerator(ngf=8)) == 140_896


def test_masks_and_textures_stay_in_their_ranges_and_masks_are_standardised_before() -> None:
    torch.manual_seed(0)
    cgn, (z, y) = CgnGenerator(), inputs()
    raw = cgn.shape(torch.cat([z, cgn.label_emb(y)], 1)).detach()
    assert float(raw.mean((1, 2, 3)).abs().max()) < 1e-4
    assert float((raw.var((1, 2, 3), correction=0) - 1).abs().max()) < 1e-2
    mask = cgn.draw("shape", z, y).detach()
    assert mask.shape == (6, 1, 32, 32)
    assert mask.min() == pytest.approx(LOWEST)
    assert mask.max() == pytest.approx(HIGHEST)
    for im in ("fg", "bg"):
        texture = cgn.draw(im, z, y).detach()
        assert texture.shape == (6, 3, 32, 32)
        assert texture.min() >= 0
        assert texture.max() <= 1


def test_a_flat_texture_is_the_mean_of_what_would_have_been_drawn() -> None:
    torch.manual_seed(0)
    cgn, (z, y) = CgnGenerator(), inputs()  # batch norms of this batch: those of none yet leave all grey
    drawn = {im: cgn.draw(im, z, y) for im in MECHANISMS}
    flat = CgnGenerator(flat=True)
    flat.load_state_dict(cgn.state_dict())
    assert torch.equal(flat.draw("shape", z, y), drawn["shape"])
    for im in ("fg", "bg"):
        wanted = drawn[im].mean((2, 3), keepdim=True).expand_as(drawn[im])
        assert drawn[im].std((2, 3)).min() > 1e-3
        assert torch.equal(flat.draw(im, z, y), wanted)


def test_backgrounds_begin_as_dark_as_they_should() -> None:
    torch.manual_seed(0)
    cgn, (z, y) = CgnGenerator(behind=0.02), inputs()
    before_tanh = [net[:-1](torch.cat([z, cgn.label_emb(y)], 1)).detach().mean() for net in (cgn.fg, cgn.bg)]
    assert [float(mean) for mean in before_tanh] == pytest.approx([0.0, math.atanh(-0.96)], abs=1e-4)
    with pytest.raises(ValueError, match="behind=0: expected a level between 0 and 1"):
        CgnGenerator(behind=0)


def test_a_mechanism_does_not_see_the_labels_of_the_others() -> None:
    torch.manual_seed(0)
    cgn, (z, y) = CgnGenerator().eval(), inputs()
    before = [cgn.draw(im, z, y) for im in MECHANISMS]
    other = cgn.draw("bg", z, y.flip(0))
    assert all(torch.equal(a, cgn.draw(im, z, y)) for a, im in zip(before, MECHANISMS, strict=True))
    assert not torch.allclose(other, before[2])
    assert torch.equal(cgn(z, y), compose(*before))


def test_students_together_answer_as_each_of_them_alone() -> None:
    class Grey(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.full((len(z), 3, 4, 4), self.value)

    z, y = inputs()
    together = Together(Grey(0.25), Grey(1.0), Grey(0.0))
    assert together.draw("shape", z, y).shape == (6, 1, 4, 4)
    assert torch.allclose(together(z, y), torch.full((6, 3, 4, 4), 0.25))
    torch.manual_seed(0)
    cgn = CgnGenerator().eval()
    assert torch.equal(Together(cgn, cgn, cgn)(z, y), cgn(z, y))


def test_a_projection_asks_an_image_for_its_label() -> None:
    torch.manual_seed(0)
    net = ProjectionDiscriminator().eval()
    assert count(net) == 174_449
    x, y = torch.rand(6, 3, 32, 32), torch.arange(6)
    verdicts = net(x, y)
    assert verdicts.shape == (6,)
    assert (verdicts - net(x, y.roll(1))).abs().min() > 1e-4
    assert ProjectionDiscriminator(size=8, layers=3)(x[..., :8, :8], y).shape == (6,)
    with pytest.raises(ValueError, match="size=8: expected at least 16, or layers=4 leave nothing"):
        ProjectionDiscriminator(size=8)


def test_textures_move_in_a_circle_each_by_itself() -> None:
    x = torch.rand(40, 3, 8, 8)
    moved = shifted(x, torch.Generator().manual_seed(0))
    found = []
    for before, after in zip(x, moved, strict=True):
        ways = [(i, j) for i in range(8) for j in range(8) if torch.equal(before.roll((-i, -j), (1, 2)), after)]
        assert len(ways) == 1
        found += ways
    assert len(set(found)) > 20
    place = torch.arange(8.0).expand(4000, 1, 8, 8)
    for x in (place, place.transpose(2, 3)):
        ways = shifted(x, torch.Generator().manual_seed(0))[:, 0, 0, 0]
        counts = torch.bincount(ways.long(), minlength=8) / 4000
        assert counts[0] == pytest.approx(2 / 9, abs=0.03), "the first and the last of nine are the same"
        assert counts[3] == pytest.approx(1 / 9, abs=0.03)


@pytest.mark.parametrize(("init", "gain"), [("orthogonal", 0.2), ("normal", 0.03)])
def test_initial_weights(init: str, gain: float) -> None:
    torch.manual_seed(0)
    net = CgnGenerator(init=init, gain=gain)  # type: ignore[arg-type]
    weight = net.shape[0].weight
    if init == "orthogonal":
        assert torch.allclose(weight.T @ weight, gain**2 * torch.eye(42), atol=1e-4)
    else:
        assert float(weight.detach().std()) == pytest.approx(gain, rel=0.05)
    assert float(net.shape[0].bias.detach().abs().max()) == 0


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="size=30: expected a multiple of 4"):
        CgnGenerator(size=30)
    with pytest.raises(ValueError, match="init=xavier: expected orthogonal, normal or null"):
        CgnGenerator(init="xavier")  # type: ignore[arg-type]
