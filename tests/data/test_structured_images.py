"""Structured random images: closed forms of their parts, any height and width, and the same again from a seed."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from kd_lightning.data.structured_images import (
    CHUNK,
    blurring,
    cropped,
    different,
    diverging,
    hierarchical,
    masks,
    mixed,
    side_of,
    single_colours,
    standardised,
    warped,
)
from kd_lightning.errors import ConfigError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_diverging_filter_keeps_both_ends_and_the_middle_and_is_flat_at_the_ends() -> None:
    m = torch.tensor([0, 0.25, 0.5, 0.75, 1], requires_grad=True)
    out = diverging(m)
    torch.testing.assert_close(out, torch.tensor([0, 0.125, 0.5, 0.875, 1]))
    (slope,) = torch.autograd.grad(out.sum(), m)
    torch.testing.assert_close(slope[[0, 2, 4]], torch.tensor([0.0, 2.0, 0.0]))


@pytest.mark.parametrize("coarsest", [0, 2])
def test_the_weights_of_the_scales_sum_to_one(coarsest: int) -> None:
    x = hierarchical(2000, 1, 8, rng(), coarsest=coarsest)
    assert x.shape == (2000, 1, 8, 8)
    assert x.min() >= 0
    assert x.max() <= 1
    assert abs(float(x.mean()) - 0.5) < 0.02


def test_the_finest_scale_only_is_plain_noise_and_coarser_scales_are_smooth() -> None:
    plain, smooth = hierarchical(500, 1, 16, rng(), coarsest=4), hierarchical(500, 1, 16, rng())
    assert abs(float(plain.std()) - 12**-0.5) < 0.005

    def likeness(x: torch.Tensor) -> float:
        near, far = x[..., 1:].flatten(), x[..., :-1].flatten()
        return float(torch.corrcoef(torch.stack([near, far]))[0, 1])

    assert abs(likeness(plain)) < 0.02
    assert likeness(smooth) > 0.5


def test_the_square_is_the_next_power_of_two() -> None:
    assert [side_of(*size) for size in ((32, 32), (24, 96), (33, 8), (1, 1), (96, 24))] == [32, 128, 64, 1, 128]


@pytest.mark.parametrize(("side", "sigma", "reach"), [(9, 1.5, 2), (16, 0.7, 2), (8, 1.5, 6)])
def test_the_blur_is_that_of_torchvision(side: int, sigma: float, reach: int) -> None:
    x = torch.rand(3, 1, side, side, generator=rng())
    blur = blurring(side, sigma, reach=reach)
    torch.testing.assert_close(blur @ x @ blur.T, gaussian_blur(x, [2 * reach + 1] * 2, [sigma] * 2))


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_a_blur_wider_than_the_image_keeps_a_constant(side: int) -> None:
    torch.testing.assert_close(blurring(side, 5.0, reach=20).sum(1), torch.ones(side))


def test_a_crop_is_a_part_at_any_place() -> None:
    whole = torch.arange(6 * 9).view(1, 1, 6, 9).expand(400, 2, -1, -1)
    parts = cropped(whole, 4, 7, rng())
    assert parts.shape == (400, 2, 4, 7)
    inside = (torch.arange(4)[:, None] * 9 + torch.arange(7)).expand(400, 2, -1, -1)
    assert torch.equal(parts - parts[..., :1, :1], inside)
    assert set(parts[:, 0, 0, 0].tolist()) == {9 * row + column for row in range(3) for column in range(3)}


def test_a_warp_of_nothing_changes_nothing_and_one_of_45_degrees_leaves_black_corners() -> None:
    x = torch.rand(50, 3, 16, 16, generator=rng())
    torch.testing.assert_close(warped(x, rng(), degrees=0.0, elastic=0.0), x)
    turned = warped(torch.ones(50, 1, 16, 16), rng(), degrees=45.0, elastic=0.0)
    assert float(turned[:, :, 0, 0].min()) == 0
    torch.testing.assert_close(turned[:, :, 7:9, 7:9], torch.ones(50, 1, 2, 2))
    bent = warped(x, rng(), degrees=0.0, elastic=50.0)
    assert float((bent - x).abs().mean()) > 0.05


def test_masks_end_up_near_zero_or_one() -> None:
    shapes = masks(200, 16, 24, rng())
    assert shapes.shape == (200, 1, 16, 24)
    assert shapes.min() >= 0
    assert shapes.max() <= 1
    assert float(((shapes < 0.05) | (shapes > 0.95)).float().mean()) > 0.6
    assert 0.4 < float(shapes.mean()) < 0.6


def test_mixing_takes_one_image_inside_and_the_other_outside() -> None:
    x, y, mask = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), torch.tensor([[1.0, 0.0], [0.25, 1.0]])
    assert torch.equal(mixed(x, y, mask.expand(1, 1, 2, 2))[0, 0], torch.tensor([[0.0, 1.0], [0.75, 0.0]]))


def test_a_share_of_the_images_becomes_one_colour() -> None:
    x = torch.rand(1000, 3, 2, 2, generator=rng())
    out = single_colours(x, 0.3, rng(1))
    plain = (out == out[..., :1, :1]).all(3).all(2).all(1)
    assert 0.25 < float(plain.float().mean()) < 0.35
    assert torch.equal(out[~plain], x[~plain])


def test_a_standardised_image_has_the_statistics_of_the_data() -> None:
    x = 0.3 * torch.rand(20, 1, 8, 8, generator=rng()) + 0.2
    out = standardised(x, [0.13], [0.31])
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.full((20,), 0.13))
    torch.testing.assert_close(out.std((1, 2, 3), correction=0), torch.full((20,), 0.31))
    rgb, mean, std = torch.rand(20, 3, 8, 8, generator=rng()), [0.5, 0.4, 0.3], [0.2, 0.1, 0.3]
    back = (standardised(rgb, mean, std) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(back.mean((1, 2, 3)), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(back.std((1, 2, 3), correction=0), torch.ones(20))


def test_a_constant_image_becomes_the_mean_everywhere() -> None:
    out = standardised(torch.full((2, 3, 4, 4), 0.7), [0.5, 0.4, 0.3], [0.2, 0.1, 0.3])
    torch.testing.assert_close(out, torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1).expand(2, -1, 4, 4))


def test_equal_images_are_taken_once_and_where_there_are_no_others_that_is_said() -> None:
    def few(generator: torch.Generator) -> torch.Tensor:
        return torch.randint(5, (CHUNK, 1, 1, 1), generator=generator) / 255

    assert sorted(different(5, few, 0).flatten().tolist()) == list(range(5))
    with pytest.raises(ConfigError, match=r"source\.images=6: these settings make 5 different images only"):
        different(6, few, 0)
