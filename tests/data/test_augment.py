"""Augmentation: every image has its own draw, the draw is the generator's, and pixels only move."""

import pytest
import torch

from kd_lightning.data.augment import HorizontalFlip, RandomAffine, RandomCrop, RandomResizedCrop


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n=64, channels=3, size=8):
    return torch.rand(n, channels, size, size, generator=rng(9)) + 0.01  # no pixel is black


@pytest.mark.parametrize("augment", [RandomCrop(2), HorizontalFlip(), RandomResizedCrop(), RandomAffine()])
def test_only_the_generator_decides(augment):
    x = noise()
    kept = x.clone()
    torch.manual_seed(1)
    first = augment(x, rng(1))
    torch.manual_seed(2)
    assert torch.equal(first, augment(x, rng(1)))
    assert not torch.equal(first, augment(x, rng(2)))
    assert torch.equal(x, kept)
    assert (first.shape, first.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("augment", [RandomCrop(2), HorizontalFlip(), RandomResizedCrop(), RandomAffine()])
def test_equal_images_of_a_batch_come_out_different(augment):
    x = noise(1).expand(64, -1, -1, -1).contiguous()
    assert len(augment(x, rng()).flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 9)])
def test_every_crop_is_a_shift_with_black_entering(height, width):
    x = torch.rand(200, 2, height, width, generator=rng(9)) + 0.01
    y = RandomCrop(1)(x, rng())
    seen = set()
    for before, after in zip(x, y, strict=True):
        padded = torch.zeros(2, height + 2, width + 2)
        padded[:, 1:-1, 1:-1] = before
        shifts = {(r, c): padded[:, r : r + height, c : c + width] for r in range(3) for c in range(3)}
        places = {place for place, shifted in shifts.items() if torch.equal(after, shifted)}
        assert len(places) == 1
        seen |= places
    assert len(seen) == 9


def test_no_padding_changes_nothing():
    x = noise()
    assert torch.equal(RandomCrop(0)(x, rng()), x)


def test_flips_mirror_left_and_right_at_their_rate():
    x = noise(2000, channels=1, size=4)
    y = HorizontalFlip(0.25)(x, rng())
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    kept = (y == x).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 0.2 < mirrored.float().mean() < 0.3
    assert torch.equal(HorizontalFlip(1.0)(x, rng()), x.flip(3))
    assert torch.equal(HorizontalFlip(0.0)(x, rng()), x)


def test_a_resized_crop_shows_a_part_of_the_area_asked_for():
    ramp = torch.linspace(0, 1, 64).expand(2000, 1, 64, 64)  # its slope tells the width of the part
    both = torch.cat([ramp, ramp.transpose(2, 3)], 1)
    seen = RandomResizedCrop(scale=(0.25, 0.36), ratio=(0.5, 2.0))(both, rng())
    width = (seen[:, 0, 32, 62] - seen[:, 0, 32, 1]) * 63 / 61
    height = (seen[:, 1, 62, 32] - seen[:, 1, 1, 32]) * 63 / 61
    area, ratio = width * height, width / height
    assert area.min() == pytest.approx(0.25, abs=0.01)
    assert area.max() == pytest.approx(0.36, abs=0.01)
    assert ratio.min() == pytest.approx(0.5, rel=0.05)
    assert ratio.max() == pytest.approx(2.0, rel=0.05)
    assert ratio.log().mean().abs() < 0.05
    left = seen[:, 0, 32, 0]
    assert left.min() < 0.02
    assert left.max() > 0.5


def test_the_whole_image_is_a_crop_that_changes_nothing():
    x = noise(4)
    assert torch.allclose(RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))(x, rng()), x, atol=1e-5)


def test_gradients_cross_a_resized_crop():
    x = noise(8).requires_grad_()
    RandomResizedCrop()(x, rng()).sum().backward()
    assert x.grad.flatten(1).abs().sum(1).min() > 0


def marked():
    """A bright pixel 10 right of the centre of 33x33."""
    x = torch.zeros(500, 1, 33, 33)
    x[:, :, 16, 26] = 1
    return x


def centroid(y):
    places = torch.arange(33.0) - 16
    mass = y.sum((1, 2, 3))
    return (y.sum((1, 3)) * places).sum(1) / mass, (y.sum((1, 2)) * places).sum(1) / mass


def test_turns_are_about_the_centre_by_at_most_the_angle():
    down, right = centroid(RandomAffine(degrees=30, shift=0)(marked(), rng()))
    assert ((down**2 + right**2).sqrt() - 10).abs().max() < 0.3
    angle = torch.rad2deg(torch.atan2(down, right))
    assert -31 < angle.min() < -28
    assert 28 < angle.max() < 31
    assert angle.mean().abs() < 3


def test_shifts_are_a_part_of_the_side_in_both_directions():
    down, right = centroid(RandomAffine(degrees=0, shift=0.1)(marked(), rng()))
    for moved in (down, right - 10):
        assert -3.4 < moved.min() < -3.0
        assert 3.0 < moved.max() < 3.4
    assert torch.corrcoef(torch.stack([down, right]))[0, 1].abs() < 0.15


def test_what_enters_repeats_the_edge_or_is_black():
    x = torch.full((50, 3, 8, 8), 0.7)
    assert torch.allclose(RandomAffine()(x, rng()), x, atol=1e-5)
    moved = RandomAffine(degrees=0, shift=0.25, fill="zeros")(x, rng())
    lost = 1 - moved.flatten(1).sum(1) / x[0].sum()  # at most two of eight pixels, in both directions
    assert lost.min() > -1e-5
    assert 0.2 < lost.max() < 1 - (6 / 8) ** 2
    assert torch.allclose(moved.amax((1, 2, 3)), torch.tensor(0.7), atol=1e-5)
