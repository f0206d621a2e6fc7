"""CGN's composition and losses, against closed forms and slow references."""

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses.counterfactual import (
    binary_entropy,
    compose,
    edge,
    feature_distance,
    gram,
    mask_size,
    patch_grid,
    saliency,
    style,
    windows,
)


def images(n: int = 2, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, size, size)


def test_composition_of_the_sheet() -> None:
    f, b = images(), images()
    full = torch.ones(2, 1, 8, 8)
    assert bool(((compose(1e-4 * full, f, b) - b).abs() <= 2e-4 * (f - b).abs() + 1e-7).all())
    assert bool(((compose(0.9999 * full, f, b) - f).abs() <= 2e-4 * (f - b).abs() + 1e-7).all())
    half = compose(0.5 * full, torch.ones(2, 3, 8, 8), -torch.ones(2, 3, 8, 8))
    assert half.shape == (2, 3, 8, 8)
    assert not half.any()


def test_composition_is_linear_and_knows_no_side() -> None:
    m, f, b, g = torch.rand(2, 1, 8, 8), images(), images(), images()
    torch.testing.assert_close(compose(m, f + 2 * g, b), compose(m, f, b) + 2 * compose(m, g, 0 * b))
    torch.testing.assert_close(compose(m, f, b + 2 * g), compose(m, f, b) + 2 * compose(m, 0 * f, g))
    torch.testing.assert_close(compose(1 - m, b, f), compose(m, f, b))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 8, 8), (2, 1, 4, 4), (2, 8, 8)])
def test_a_mask_of_another_shape_does_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N,1,H,W\)"):
        compose(torch.rand(shape), images(), images())


@pytest.mark.parametrize(("p", "bits"), [(0.5, 1.0), (0.25, 0.811278), (0.1, 0.468996), (1e-4, 0.0014731)])
def test_entropy_of_the_sheet(p: float, bits: float) -> None:
    assert float(binary_entropy(torch.full((2, 1, 4, 4), p))) == pytest.approx(bits, rel=1e-4)
    assert float(binary_entropy(torch.full((2, 1, 4, 4), 1 - p))) == pytest.approx(bits, rel=1e-3)


def test_entropy_has_an_end_at_0_and_1() -> None:
    mask = torch.tensor([0.0, 1.0], requires_grad=True)
    loss = binary_entropy(mask)
    loss.backward()
    assert float(loss.detach()) < 1e-4
    assert mask.grad is not None
    assert bool(mask.grad.isfinite().all())


@pytest.mark.parametrize(("share", "loss"), [(0, 50), (0.05, 25), (0.1, 0), (0.5, 0), (0.9, 0), (0.95, 25), (1, 50)])
def test_mask_size_of_the_sheet(share: float, loss: float) -> None:
    assert 500 * float(mask_size(torch.full((2, 1, 4, 4), float(share)))) == pytest.approx(loss, abs=1e-3)


def test_mask_size_looks_at_each_image() -> None:
    """The batch's mean of 0.5 is no excuse."""
    mask = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert float(mask_size(mask)) == pytest.approx(0.1)
    assert float(mask_size(mask, tau=0.2)) == pytest.approx(0.2)


def test_the_edge_is_the_share_of_the_rim_alone() -> None:
    inside, everywhere = torch.zeros(2, 1, 8, 6), torch.ones(2, 1, 8, 6)
    inside[..., 2:6, 2:4] = 1
    assert float(edge(inside, width=2)) == 0
    assert float(edge(everywhere, width=2)) == 1
    assert float(edge(everywhere - inside, width=2)) == 1
    everywhere[0, 0, 0, 0] = 0  # one of 2 * (48 - 8) pixels
    assert float(edge(everywhere, width=2)) == pytest.approx(79 / 80)


def test_saliency_of_the_sheet() -> None:
    assert 2000 * float(saliency(torch.full((3, 1, 4, 4), 0.1))) == pytest.approx(200)


def test_gram_of_the_sheet() -> None:
    torch.testing.assert_close(gram(torch.full((1, 3, 5, 7), 2.0)), torch.full((1, 3, 3), 4 / 3))
    diagonal, off = torch.tensor([7.0, 63.0, 183.0]) / 6, torch.tensor([19.0, 31.0, 107.0]) / 6
    found = gram(torch.arange(12.0).view(1, 3, 2, 2))[0]
    torch.testing.assert_close(found.diagonal(), diagonal)
    torch.testing.assert_close(torch.stack([found[0, 1], found[0, 2], found[1, 2]]), off)
    torch.testing.assert_close(found, found.T)


@pytest.mark.parametrize(("w", "factor"), [(4, 80_000), (5, 125_000), (0.05, 12.5)])
def test_factor_of_a_level(w: float, factor: float) -> None:
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    expected = factor * float((gram(x) - gram(y)).abs().mean())
    assert float(style([x], [y], [w])) == pytest.approx(expected, rel=1e-5)
    assert float(style([x, y], [y, x], [w, 0])) == pytest.approx(expected, rel=1e-5)
    assert float(style([x, y], [y, x], [w, w])) == pytest.approx(2 * expected, rel=1e-5)


def test_style_is_a_distance_with_one_side_to_move() -> None:
    x, y = torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4, requires_grad=True)
    assert float(style([x], [x], [4]).detach()) == 0
    assert float(style([x], [y], [4]).detach()) == pytest.approx(float(style([y], [x], [4]).detach()))
    style([x], [y], [4]).backward()
    assert x.grad is not None
    assert bool(x.grad.any())
    assert y.grad is None


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, 1.0, 1.0]])
def test_weights_that_weigh_nothing_or_other_levels(weights: list[float]) -> None:
    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="a weight for each level"):
        style([x, x], [x, x], weights)


def test_feature_distance() -> None:
    """The weights of TinyGAN sum to 1.46875."""
    weights = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1]
    xs = [torch.full((2, 2**i), 1.0, requires_grad=True) for i in range(5)]
    ys = [torch.full((2, 2**i), 3.0, requires_grad=True) for i in range(5)]
    loss = feature_distance(xs, ys, weights)
    assert float(loss.detach()) == pytest.approx(2 * 1.46875)
    loss.backward()
    assert all(x.grad is not None for x in xs)
    assert all(y.grad is None for y in ys)
    with pytest.raises(ValueError, match="of the same shapes"):
        feature_distance(xs, ys[::-1], weights)


def test_windows_of_the_sheet() -> None:
    x = torch.rand(2, 3, 20, 20)
    found = windows(x, 15)
    assert found.shape == (2, 3, 6, 6, 15, 15)
    assert len(found.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)) == 72
    torch.testing.assert_close(found[1, :, 2, 5], x[1, :, 2:17, 5:20])
    padded = windows(F.pad(x, [5] * 4), 10)
    assert padded.shape == (2, 3, 20, 20, 11, 11)


def test_a_constant_image_stays_constant() -> None:
    x = torch.full((2, 3, 40, 40), 0.37)
    found = patch_grid(x, torch.rand(2, 1, 40, 40))
    torch.testing.assert_close(found, x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [0, 1])
def test_patches_come_from_inside_the_mask(side: int) -> None:
    """Red on the left, green on the right: what is outside the mask does not show, up to bicubic's overshoot."""
    x = torch.zeros(2, 3, 256, 256)
    x[:, 0, :, :128] = 1
    x[:, 1, :, 128:] = 1
    mask = torch.zeros(2, 1, 256, 256)
    mask[:, :, :, 128 * side : 128 * (side + 1)] = 1
    found = patch_grid(x, mask)
    assert found.shape == x.shape
    assert float(found[:, 1 - side].mean()) < 0.02
    assert float(found[:, side].mean()) > 0.98
    assert float(found[:, 1 - side].max()) < 0.11


def test_each_image_keeps_its_own_patches_and_seeds_repeat() -> None:
    def draw(seed: int) -> torch.Tensor:
        return patch_grid(x, mask, patch=5, resize=32, best=50, grid=3, rng=torch.Generator().manual_seed(seed))

    x = torch.stack([0.4 * torch.rand(3, 32, 32), 0.6 + 0.4 * torch.rand(3, 32, 32)])
    mask = torch.rand(2, 1, 32, 32)
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert float(draw(1)[0].mean()) < 0.4 < 0.6 < float(draw(1)[1].mean())


def test_the_grid_is_made_of_windows_of_the_image() -> None:
    """Without any resizing, each square is one of the best windows, pixel for pixel."""
    x, mask = torch.rand(1, 2, 15, 15), torch.rand(1, 1, 15, 15)
    found = patch_grid(x, mask, patch=5, resize=15, best=4, grid=3)
    every = windows(x, 5)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)
    inside = windows(mask, 5)[0].permute(1, 2, 0, 3, 4).flatten(0, 1).mean((1, 2, 3))
    best = every[inside.topk(4).indices]
    for square in found[0].unflatten(1, (3, 5)).unflatten(3, (3, 5)).permute(1, 3, 0, 2, 4).flatten(0, 1):
        assert bool((best - square).abs().amax((1, 2, 3)).min() < 1e-5)


def test_no_gradient_leaves_the_grid() -> None:
    x, mask = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 1, 16, 16, requires_grad=True)
    assert not patch_grid(x, mask, patch=5, resize=16, grid=3).requires_grad


def test_windows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit into 4"):
        patch_grid(images(), torch.rand(2, 1, 8, 8), resize=4)
