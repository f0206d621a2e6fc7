"""Changes of mask, texture and background: what each says it does, from the generator alone, gradients crossing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torchvision.transforms import functional as V

from kd_lightning.config import resolvers
from kd_lightning.config.check import faults
from kd_lightning.config.overrides import read
from kd_lightning.errors import ConfigError
from kd_lightning.sources.mask_operations import Jitter, MaskNoise, Opacity, Parts, Rotation, Weights, applied

SOME = [MaskNoise(), Opacity(), Rotation(), Weights(0.5, 0.8, 1.2), Jitter()]
NO_CHANGE = [MaskNoise(0.0), Opacity(1.0), Rotation(0.0), Weights(), Jitter(0, 0, 0, 0)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(n: int = 6, size: int = 8) -> Parts:
    fg, bg = torch.rand(2, n, 3, size, size, generator=rng(1))
    mask = torch.rand(n, 1, size, size, generator=rng(2)).clamp(1e-4, 0.9999)
    return mask, fg, bg


@pytest.mark.parametrize("operator", NO_CHANGE)
def test_each_can_change_nothing(operator: Any) -> None:
    before = parts()
    for old, new in zip(before, operator(*before, rng()), strict=True):
        torch.testing.assert_close(old, new, atol=1e-6, rtol=0)


@pytest.mark.parametrize("operator", SOME)
def test_each_stays_in_its_range_and_leaves_what_it_was_given(operator: Any) -> None:
    before = parts()
    kept = [part.clone() for part in before]
    after = operator(*before, rng())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for given, was, new in zip(before, kept, after, strict=True):
        assert torch.equal(given, was)
        assert (new.shape, new.dtype) == (was.shape, was.dtype)
        assert new.min() >= 0
        assert new.max() <= 1


@pytest.mark.parametrize("operator", [MaskNoise(), Rotation(), Jitter()])
def test_only_the_generator_decides_and_every_image_has_its_own(operator: Any) -> None:
    same = [part[:1].expand(5, -1, -1, -1) for part in parts()]
    first = torch.cat(operator(*same, rng(1)), 1)
    torch.manual_seed(2)
    assert torch.equal(first, torch.cat(operator(*same, rng(1)), 1))
    assert not torch.equal(first, torch.cat(operator(*same, rng(2)), 1))
    assert len(first.flatten(1).unique(dim=0)) == 5


@pytest.mark.parametrize("operator", SOME)
def test_gradients_reach_every_image_of_every_part(operator: Any) -> None:
    given = [part.mul(0.5).add(0.25).requires_grad_() for part in parts()]
    sum(part.square().sum() for part in operator(*given, rng())).backward()
    for part in given:
        assert part.grad is not None
        assert part.grad.isfinite().all()
        assert (part.grad != 0).flatten(1).any(1).all()


def test_noise_has_its_spread_about_the_mask_and_is_cut() -> None:
    mask = torch.full((200, 1, 16, 16), 0.5)
    noisy, fg, bg = MaskNoise(0.1)(mask, *parts()[1:], rng())
    assert abs(float(noisy.mean()) - 0.5) < 0.002
    assert abs(float(noisy.std()) - 0.1) < 0.002
    assert torch.equal(fg, parts()[1])
    assert torch.equal(bg, parts()[2])
    strong = MaskNoise(1.0)(mask, fg, bg, rng())[0]
    assert float(strong.min()) == pytest.approx(1e-4)
    assert float(strong.max()) == pytest.approx(0.9999)
    assert abs(float((strong == strong.max()).float().mean()) - 0.3086) < 0.01  # P(N(0, 1) > .4999)


def test_opacity_lets_the_background_show_through() -> None:
    mask, fg, bg = parts()
    thin, same_fg, same_bg = Opacity()(mask, fg, bg, rng())
    torch.testing.assert_close(thin, 0.75 * mask)
    assert same_fg is fg
    assert same_bg is bg
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Opacity(1.5)


def test_rotation_turns_the_mask_alone_and_brings_in_no_shape() -> None:
    centre, right = torch.zeros(2, 300, 1, 9, 9)
    centre[:, :, 4, 4] = right[:, :, 4, 7] = 1.0
    stays = Rotation()(centre, *parts()[1:], rng())[0][:, 0, 4, 4]
    torch.testing.assert_close(stays, torch.ones(300))
    turned, fg, _ = Rotation()(right, *parts()[1:], rng())
    assert torch.equal(fg, parts()[1])
    weight = turned.sum((1, 2, 3))
    y, x = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(9.0) - 4, indexing="ij")
    found = torch.stack([(turned[:, 0] * axis).sum((1, 2)) / weight for axis in (x, y)])
    assert (found.norm(dim=0) - 3).abs().max() < 0.3, "its distance from the centre stays"
    quarters = (found[0] > 0).long() * 2 + (found[1] > 0)
    assert torch.bincount(quarters, minlength=4).min() > 50, "any angle is as likely"
    few = Rotation(10.0)(right, *parts()[1:], rng())[0]
    assert few[:, 0, :, :4].abs().max() == 0, "by at most ten degrees it does not come to the other side"
    full = Rotation(45.0)(torch.ones(50, 1, 9, 9), *parts()[1:], rng())[0]
    assert full[:, 0, 0, 0].min() < 0.5, "what turns in from outside is no shape"


def test_weights_are_about_grey_which_is_0_in_the_code() -> None:
    mask, fg, bg = parts()
    weighed = Weights(0.5, 0.7, 1.6)(mask, fg, bg, rng())
    torch.testing.assert_close(weighed[0], 0.5 * mask)
    for now, before, weight in ((weighed[1], fg, 0.7), (weighed[2], bg, 1.6)):
        torch.testing.assert_close(2 * now - 1, (weight * (2 * before - 1)).clamp(-1, 1))


def test_jitter_is_torchvisions_image_by_image() -> None:
    size = Jitter(0.4, 0.3, 0.5, 0.2)
    mask, fg, bg = parts()
    fg[0], bg[1, :, 2] = 0.3, 1.0  # greys have no hue
    after = size(mask, fg, bg, rng())
    assert after[0] is mask
    noise = rng()
    for before, now in ((fg, after[1]), (bg, after[2])):
        draws = 2 * torch.rand(4, len(before), generator=noise) - 1
        for x, y, (b, c, s, h) in zip(before, now, draws.T.tolist(), strict=True):
            x = V.adjust_contrast(V.adjust_brightness(x, 1 + 0.4 * b), 1 + 0.3 * c)
            x = V.adjust_hue(V.adjust_saturation(x, 1 + 0.5 * s), 0.2 * h)
            torch.testing.assert_close(y, x, atol=2e-6, rtol=0)


def test_jitter_wants_colours() -> None:
    mask, fg, bg = parts()
    with pytest.raises(ConfigError, match="1 channel"):
        Jitter()(mask, fg[:, :1], bg[:, :1], rng())


def test_operators_are_applied_in_their_order() -> None:
    mask, fg, bg = parts()
    draw = MaskNoise()(mask, fg, bg, rng())[0]
    torch.testing.assert_close(applied([MaskNoise(), Opacity(0.5)], mask, fg, bg, rng())[0], draw / 2)
    assert float(applied([Opacity(0.5), MaskNoise(1.0)], mask, fg, bg, rng())[0].max()) == pytest.approx(0.9999)
    assert all(a is b for a, b in zip(applied([], mask, fg, bg, rng()), (mask, fg, bg), strict=True))


def made(*overrides: str) -> list[Any]:
    """What a source that refers to the operators is given."""
    resolvers.register()
    wanted = "++source={_target_: builtins.dict, mask_operations: '${oc.dict.values:mask_operations}'}"
    cfg, problems, unset = read([*overrides, wanted])
    assert not problems
    assert not unset
    return instantiate(cfg.source, _convert_="all")["mask_operations"]


def test_the_group_gives_a_list_in_the_order_of_choice() -> None:
    assert made() == []
    assert made("mask_operations=noise", "mask_operations.noise.std=0.2") == [MaskNoise(0.2)]
    assert made("mask_operations=[opacity,rotation]") == [Opacity(0.75), Rotation(180.0)]
    assert made("mask_operations=[rotation,opacity]") == [Rotation(180.0), Opacity(0.75)]
    assert made("mask_operations=[weights,jitter]", "mask_operations.weights.fg=0.5") == [
        Weights(fg=0.5, bg=0.75),
        Jitter(),
    ]


def test_operators_that_nobody_applies_are_a_fault() -> None:
    resolvers.register()
    assert [line.partition(";")[0] for line in faults(read(["mask_operations=noise"]).cfg)] == [
        "mask_operations: nothing reads this setting"
    ]


def composed(mask: Tensor, fg: Tensor, bg: Tensor) -> Tensor:
    return mask * fg + (1 - mask) * bg


def test_composition_is_the_mirror_of_itself_and_linear_also_after_operators() -> None:
    mask, fg, bg = applied([Opacity(), Rotation(), Weights(fg=0.9)], *parts(), rng())
    torch.testing.assert_close(composed(mask, fg, bg), composed(1 - mask, bg, fg))
    assert composed(mask, fg, bg).shape == fg.shape, "one mask for three channels"
