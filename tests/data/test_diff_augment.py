"""Changes of images that a discriminator sees: every image its own, and gradients cross them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_lightning.data.diff_augment import DiffAugment


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int = 3, n: int = 6) -> Tensor:
    return torch.rand(n, channels, 8, 8, generator=rng(1))


COLOUR = DiffAugment(translation=0, cutout=0)
SHIFT = DiffAugment(colour=False, translation=0.25, cutout=0)
CUT = DiffAugment(colour=False, translation=0, cutout=0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_equal_the_published_ones_in_minus_one_to_one(channels: int) -> None:
    x = images(channels)
    brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, generator=rng())
    t = 2 * x - 1
    t = t + (brightness - 0.5)
    mean = t.mean(1, keepdim=True)
    t = (t - mean) * (saturation * 2) + mean
    mean = t.mean((1, 2, 3), keepdim=True)
    t = (t - mean) * (contrast + 0.5) + mean
    torch.testing.assert_close(2 * COLOUR(x, rng()) - 1, t)


def test_shifts_are_whole_pixels_and_what_is_missing_is_grey() -> None:
    x = images(n=400)
    shifted = SHIFT(x, rng())
    canvas = torch.full((400, 3, 12, 12), 0.5)
    canvas[:, :, 2:10, 2:10] = x
    seen = set()
    for one, wide in zip(shifted, canvas, strict=True):
        found = [(i, j) for i in range(5) for j in range(5) if torch.equal(one, wide[:, i : i + 8, j : j + 8])]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 25, "up to two pixels in each direction"


def test_a_square_of_half_the_side_is_cut_out_somewhere() -> None:
    x = images(n=400) * 0.4
    cut = CUT(x, rng())
    hole = (cut == 0.5).all(1)
    torch.testing.assert_close(cut.where(~hole[:, None], x), x)
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None]), "no rectangle"
    sides = torch.stack([rows.sum(1), columns.sum(1)])
    assert sides.max() == 4
    assert sides.min() == 2, "half of it at least lies inside"
    first = rows[rows.sum(1) == 4].float().argmax(1)
    assert set(first.tolist()) == {0, 1, 2, 3, 4}


def test_every_image_has_its_own_change_from_the_generator_alone() -> None:
    whole = DiffAugment()
    x = images(n=1).expand(8, -1, -1, -1)
    changed = whole(x, rng())
    assert len({float(one.sum()) for one in changed}) == 8
    assert torch.equal(whole(x, rng()), changed)
    assert not torch.equal(whole(x, rng(5)), changed)


def test_gradients_reach_the_pixels_that_are_left() -> None:
    for change, all_left in ((COLOUR, True), (SHIFT, False), (CUT, False)):
        x = images(n=40).requires_grad_()
        change(x, rng()).square().sum().backward()
        assert x.grad is not None
        assert (x.grad != 0).any(3).any(2).any(1).all()
        assert bool((x.grad != 0).all()) == all_left


def test_it_can_be_none_at_all() -> None:
    x = images()
    assert DiffAugment(colour=False, translation=0, cutout=0)(x, rng()) is x
