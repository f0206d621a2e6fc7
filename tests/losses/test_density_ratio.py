"""The softplus loss knows the ratio of two densities as its only minimum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd_lightning.losses.density_ratio import CONSTANT, penalised_softplus, softplus_ratio


@pytest.mark.parametrize(
    ("c", "plain", "penalised"),
    [
        (0.0, -1.193147, -1.183147),
        (0.5, -1.285307, -1.282807),
        (1.0, -1.313262, -1.313262),
        (2.0, -1.246131, -1.236131),
    ],
)
def test_constant_ratios(c: float, plain: float, penalised: float) -> None:
    ratio = torch.full((7,), c)
    assert float(softplus_ratio(ratio, ratio)) == pytest.approx(plain, abs=1e-6)
    assert float(penalised_softplus(ratio, ratio)) == pytest.approx(penalised, abs=1e-6)


def test_the_best_constant_is_one() -> None:
    assert pytest.approx(-math.log(1 + math.e)) == CONSTANT
    losses = [float(softplus_ratio(*[torch.full((1,), c)] * 2)) for c in torch.linspace(0, 3, 61).tolist()]
    assert min(losses) == pytest.approx(CONSTANT, abs=1e-6)


@pytest.mark.parametrize(
    ("fake", "real", "loss"), [([0.0, 2.0], [1.0, 3.0], -1.371057), ([0.5, 1.5, 3.0], [1.0, 2.0, 4.0], -1.303100)]
)
def test_toys_of_the_sheet(fake: list[float], real: list[float], loss: float) -> None:
    assert float(penalised_softplus(torch.tensor(real), torch.tensor(fake), penalty=0.01)) == pytest.approx(
        loss, abs=1e-6
    )


@pytest.mark.parametrize("v", [0.3, 1.0, 2.5])
def test_the_gradient_vanishes_at_one_where_both_see_the_same(v: float) -> None:
    values = torch.tensor([v, 0.7], requires_grad=True)
    softplus_ratio(values, values).backward()
    slope = torch.sigmoid(torch.tensor(v)) * (1 - torch.sigmoid(torch.tensor(v)))
    assert values.grad is not None
    assert float(values.grad[0]) == pytest.approx(float(slope) * (v - 1) / 2, abs=1e-6)


def test_the_order_in_a_batch_does_not_matter() -> None:
    real, fake = torch.rand(2, 50).mul(3)
    one, other = penalised_softplus(real, fake), penalised_softplus(real.flip(0), fake.roll(7))
    assert float(one) == pytest.approx(float(other), abs=1e-6)


MEANS = torch.tensor([-2.0, 0.0, 2.0])


def pair(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Real N(y, 1), made N(y, 2^2) and their common labels."""
    y = torch.randint(3, (n,), generator=rng)
    noise = torch.randn(2, n, generator=rng)
    return MEANS[y] + noise[0], MEANS[y] + 2 * noise[1], y


@pytest.fixture(scope="module")
def learned() -> tuple[torch.nn.Module, torch.Generator]:
    """The ratio of those, learned by the network that image features are given to."""
    from kd_lightning.networks.density_ratio import RatioMlp

    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    psi = RatioMlp(4, widths=(64, 64), dropout=0.0)
    adam = torch.optim.Adam(psi.parameters(), lr=1e-2, betas=(0.5, 0.999))
    steps = 500
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=steps)
    for _ in range(steps):
        real, fake, y = pair(512, rng)
        r, g = ratio(psi, torch.cat([real, fake]), y.repeat(2)).chunk(2)
        loss = penalised_softplus(r, g)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return psi.eval().requires_grad_(False), rng


def ratio(psi: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return psi(torch.cat([x[:, None], torch.nn.functional.one_hot(y, 3)], 1))


@pytest.mark.slow
def test_the_ratio_of_two_normal_laws_is_recovered(learned: tuple[torch.nn.Module, torch.Generator]) -> None:
    psi, rng = learned
    real, fake, y = pair(20000, rng)
    wanted = 2 * torch.exp(-3 * (fake - MEANS[y]).square() / 8)
    found = ratio(psi, fake, y)
    assert torch.corrcoef(torch.stack([wanted, found]))[0, 1] > 0.98
    assert abs(float(found.mean()) - 1) < 0.05
    loss = float(softplus_ratio(ratio(psi, real, y), found))
    assert loss == pytest.approx(-1.363067, abs=0.008)
    swapped = ratio(psi, fake, (y + 1) % 3)
    assert torch.corrcoef(torch.stack([wanted, swapped]))[0, 1] < 0.8, "the label is not looked at"


def test_what_it_accepts_follows_the_real_law(learned: tuple[torch.nn.Module, torch.Generator]) -> None:
    from kd_lightning.sources.rejection import rejection

    psi, rng = learned
    y = 2
    accepted = rejection(
        lambda n: MEANS[y] + 2 * torch.randn(n, generator=rng),
        lambda x: ratio(psi, x, torch.full((len(x),), y)),
        4000,
        burn_in=1000,
        batch_size=1000,
        rng=rng,
    )
    assert len(accepted.images) == 4000
    assert 0.45 < accepted.rate < 0.57
    assert abs(float(accepted.images.std()) - 1) < 0.06
    assert abs(float(accepted.images.mean()) - 2) < 0.1
