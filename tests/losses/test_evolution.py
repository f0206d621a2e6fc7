"""Losses that vary a generator, what evolution selects by, and what a crossover imitates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_lightning.losses.evolution import best_of_each, diversity, quality
from kd_lightning.losses.gan import gradient_penalty, heuristic_g, least_squares_g, logistic_d, minimax_g


@pytest.mark.parametrize(
    ("loss", "slopes"),
    [
        (minimax_g, [-4.54e-5, -0.5, -0.9933]),
        (heuristic_g, [-0.99995, -0.5, -0.00669]),
        (least_squares_g, [-22.0, -2.0, 8.0]),
    ],
)
def test_gradients_of_mutations(loss: object, slopes: list[float]) -> None:
    """All push the logit up below 1; least squares pushes it down above."""
    scores = torch.tensor([-10.0, 0.0, 5.0], requires_grad=True)
    (3 * loss(scores)).backward()  # type: ignore[operator]
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx(slopes, rel=2e-3)


def test_losses_are_finite_where_a_sigmoid_is_0_or_1() -> None:
    far = torch.tensor([-1e4, 1e4])
    for value in (minimax_g(far), heuristic_g(far), logistic_d(far, far)):
        assert value.isfinite()


def test_a_discriminator_that_knows_nothing_has_2_ln_2() -> None:
    assert float(logistic_d(torch.zeros(5), torch.zeros(7))) == pytest.approx(2 * math.log(2))


def test_logistic_loss_is_the_cross_entropy() -> None:
    real, fake = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    wanted = F.binary_cross_entropy_with_logits(torch.cat([real, fake]), torch.arange(100).lt(50).float())
    assert float(logistic_d(real, fake)) == pytest.approx(2 * float(wanted), rel=1e-6)


def test_gradient_penalty_of_a_linear_map() -> None:
    """Its gradient is the weight everywhere, and the penalty has a gradient itself."""
    weight = torch.full((12,), 0.5).requires_grad_(True)
    points = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    penalty = gradient_penalty(points.flatten(1) @ weight, points)
    penalty.backward()
    length = 0.5 * math.sqrt(12)
    assert float(penalty.detach()) == pytest.approx((length - 1) ** 2, rel=1e-5)
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx([2 * (length - 1) * 0.5 / length] * 12, rel=1e-5)


def judge() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def test_diversity_is_of_the_gradient_over_all_parameters() -> None:
    net, x = judge(), torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    loss = logistic_d(net(x[:8]), net(x[8:]))
    found = float(diversity(loss, net.parameters()))
    loss = logistic_d(net(x[:8]), net(x[8:]))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert found == pytest.approx(-math.log(float(gradient.norm())), rel=1e-5)


def test_a_factor_on_the_loss_shifts_diversity_by_its_logarithm() -> None:
    net, x = judge(), torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    plain, scaled = (float(diversity(c * net(x).square().mean(), net.parameters())) for c in (1.0, 7.0))
    assert scaled - plain == pytest.approx(-math.log(7), abs=1e-4)


def test_diversity_takes_no_notice_of_the_order_of_a_batch() -> None:
    net, x = judge(), torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    one, other = (float(diversity(net(rows).square().mean(), net.parameters())) for rows in (x, x.flip(0)))
    assert one == pytest.approx(other, abs=1e-5)


def test_diversity_of_a_discriminator_that_learns_nothing_is_finite() -> None:
    net = judge()
    assert diversity(0 * net(torch.randn(3, 4)).sum(), net.parameters()).isfinite()


def test_quality_is_a_mean_of_probabilities() -> None:
    assert float(quality(torch.tensor([0.0, 100.0]))) == pytest.approx(0.75)
    assert float(quality(torch.tensor([1.0, 2.0]))) > float(quality(torch.tensor([0.9, 2.0])))


def test_each_sample_is_taught_by_the_best_on_it() -> None:
    outputs = torch.randn(3, 40, 2, 2, generator=torch.Generator().manual_seed(0))
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    found = best_of_each(outputs, scores)
    for i in range(40):
        assert torch.equal(found[i], outputs[int(scores[:, i].argmax()), i])


def test_of_equal_scores_the_later_counts() -> None:
    outputs = torch.stack([torch.zeros(4, 1), torch.ones(4, 1)])
    a, b = torch.tensor([0.0, 1.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert best_of_each(outputs, torch.stack([a, b])).flatten().tolist() == [1.0, 1.0, 0.0, 1.0]
    assert torch.equal(best_of_each(outputs, torch.stack([a, a + 1])), outputs[1])
    assert torch.equal(best_of_each(outputs, torch.stack([a + 1, a])), outputs[0])


def test_scores_of_another_number_of_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="need one score each"):
        best_of_each(torch.zeros(2, 4, 1), torch.zeros(2, 5))
