"""MMD, the reversed gradient and the weights of domain adaptation, beside closed forms and a slow reference."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kd_lightning.core.schedules import annealed, grown
from kd_lightning.losses.domains import domain_cross_entropy, mmd, ramp, reverse_gradient
from kd_lightning.losses.response import kl


def slowly(source: Tensor, target: Tensor) -> float:
    """Sum over pairs, one at a time, in double precision."""
    rows = [row.double() for row in (*source, *target)]
    n, every = len(source), range(len(rows))
    far = [[float((rows[i] - rows[j]).square().sum()) for j in every] for i in every]
    width = sum(map(sum, far)) / (len(rows) ** 2 - len(rows)) / 4

    def mean(a: range, b: range) -> float:
        return sum(math.exp(-far[i][j] / (width * 2**k)) for i in a for j in b for k in range(5)) / len(a) / len(b)

    one, other = range(n), range(n, len(rows))
    return mean(one, one) + mean(other, other) - 2 * mean(one, other)


@pytest.mark.parametrize("sizes", [(7, 7), (4, 9)])
def test_mmd_equals_the_sum_over_pairs(sizes: tuple[int, int]) -> None:
    source, target = torch.randn(sizes[0], 5), torch.randn(sizes[1], 5) + 1
    assert float(mmd(source, target)) == pytest.approx(slowly(source, target), abs=1e-5)


@pytest.mark.parametrize(("m", "value"), [(1, 6.186276), (2, 7.129896), (16, 7.678224)])
@pytest.mark.parametrize("distance", [0.01, 30.0])
def test_mmd_of_two_points_does_not_depend_on_their_distance(m: int, value: float, distance: float) -> None:
    closed = 10 - 2 * sum(math.exp(-4 * (2 * m - 1) / (m * 2**i)) for i in range(5))
    assert closed == pytest.approx(value, abs=1e-6)
    assert float(mmd(torch.zeros(m, 1), torch.full((m, 1), distance))) == pytest.approx(closed, abs=1e-5)


def test_mmd_of_equal_sets_is_zero_and_it_is_invariant() -> None:
    source, target = torch.randn(12, 6), torch.randn(12, 6) + 0.5
    assert float(mmd(source, source[torch.randperm(12)])) == pytest.approx(0, abs=1e-5)
    assert float(mmd(torch.ones(4, 3), torch.ones(4, 3))) == 0
    value = float(mmd(source, target))
    assert 0 < value < 10
    for one, other in ((target, source), (source + 3, target + 3), (source * 7, target * 7)):
        assert float(mmd(one, other)) == pytest.approx(value, rel=1e-4)
    assert float(mmd(torch.randn(32, 16), torch.randn(32, 16))) > 0.05  # biased: one law, two samples


def test_no_gradient_is_taken_of_the_width_of_the_kernels() -> None:
    """Two points: a width that follows the distance would leave the MMD constant."""
    source, target = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1)
    mmd(source, target).backward()
    expected = sum(-2 * 2 * 4 / 2**i * math.exp(-4 / 2**i) for i in range(5))
    assert float(source.grad) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
def test_the_gradient_is_reversed_once_for_the_features_and_not_for_the_head(delta: float) -> None:
    features, head = torch.randn(4, 3, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    plain = torch.autograd.grad(domain_cross_entropy(features @ head, -features @ head), (features, head))
    x = reverse_gradient(features, delta)
    assert torch.equal(x, features)
    through = torch.autograd.grad(domain_cross_entropy(x @ head, -x @ head), (features, head))
    torch.testing.assert_close(through[0], -delta * plain[0])
    torch.testing.assert_close(through[1], plain[1])


def test_domain_cross_entropy_in_closed_form() -> None:
    assert float(domain_cross_entropy(torch.zeros(3, 1), torch.zeros(5, 1))) == pytest.approx(math.log(2))
    assert float(domain_cross_entropy(torch.full((3,), 20.0), torch.full((3,), -20.0))) < 1e-8
    assert float(domain_cross_entropy(torch.tensor([2.0]), torch.tensor([2.0]))) == pytest.approx(
        (math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2
    )


def test_the_ramp_of_the_published_values() -> None:
    found = [ramp(p) for p in (0.0, 0.1, 0.2, 0.5, 1.0)]
    assert found == pytest.approx([0, 0.462117, 0.761594, 0.986614, 0.999909], abs=1e-6)


def test_beta_grows_exponentially_with_the_natural_logarithm() -> None:
    beta = [grown("exponential", epoch, 400, 0.1, 0.9) for epoch in range(400)]
    assert beta[0] == 0.1
    assert beta[200] == pytest.approx(0.3)
    assert beta[399] == pytest.approx(0.8951, abs=1e-4)  # the logarithm to the base 10 would end at 0.2597
    assert {round(b / a, 12) for a, b in pairwise(beta)} == {round(9 ** (1 / 400), 12)}
    assert sum(b < 0.5 for b in beta) / 400 == pytest.approx(0.7325, abs=0.0025)
    assert grown("exponential", 7, 10, 0.4, 0.4) == grown("constant", 7, 10, 0.4, 0.9) == 0.4
    assert grown("linear", 5, 10, 0.1, 0.9) == pytest.approx(0.5)
    assert [grown("step", epoch, 4, 0.0, 1.0) for epoch in range(4)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="no weight grows as wild"):
        grown("wild", 0, 1, 0.1, 0.9)


def test_the_rate_of_domain_adaptation() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule, seen = annealed(optimizer, epochs=4), []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([0.5 / (1 + 10 * e / 5) ** 0.75 for e in range(4)])


def test_at_a_high_temperature_imitation_is_a_squared_distance_of_centred_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 64, 10, generator=generator, dtype=torch.float64)
    apart = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    quadratic = float(apart.square().sum(1).mean() / 20)
    assert float(kl(s, t, temperature=20.0)) == pytest.approx(quadratic, rel=0.05)
    assert float(kl(s + 3, t - 2, temperature=20.0)) == pytest.approx(float(kl(s, t, temperature=20.0)), rel=1e-3)
