"""Hinge losses, with and without the weights of a vicinity."""

import math

import pytest
import torch

from kd_lightning.losses.gan import hinge_d, hinge_g, vicinity_weight


def test_hinge_of_the_sheet() -> None:
    real, fake = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert float(hinge_d(real, fake)) == pytest.approx(2.0)
    assert float(hinge_g(fake)) == pytest.approx(1 / 3)


def test_a_discriminator_that_knows_nothing() -> None:
    zeros = torch.zeros(5)
    assert float(hinge_d(zeros, zeros)) == pytest.approx(2.0)
    real_weight, fake_weight = torch.rand(5), torch.rand(5)
    weighted = hinge_d(zeros, zeros, real_weight=real_weight, fake_weight=fake_weight)
    assert float(weighted) == pytest.approx(float(real_weight.mean() + fake_weight.mean()))


def test_soft_vicinity_of_the_sheet() -> None:
    target = torch.tensor([0.5, 0.5])
    real_weight = vicinity_weight(torch.tensor([0.5, 0.7]), target, nu=25)
    fake_weight = vicinity_weight(torch.tensor([0.4, 0.5]), target, nu=25)
    torch.testing.assert_close(real_weight, torch.tensor([1.0, 0.367879]))
    torch.testing.assert_close(fake_weight, torch.tensor([0.778801, 1.0]))
    verdicts = {"real": torch.tensor([0.0, 0.5]), "fake": torch.tensor([-0.5, 0.5])}
    loss = hinge_d(**verdicts, real_weight=real_weight, fake_weight=fake_weight)
    assert float(loss) == pytest.approx(1.536670, abs=1e-6)


@pytest.mark.parametrize(("m", "years", "weight"), [(1, 1, 0.367879), (1, 2, 0.018316), (2, 5, 0.001930), (5, 5, None)])
def test_weights_of_ages(m: int, years: int, weight: float | None) -> None:
    """Ages are 60ths: the widest gap is one year."""
    nu = 1 / (m / 60) ** 2
    found = float(vicinity_weight(torch.tensor(years / 60), torch.tensor(0.0), nu))
    assert found == pytest.approx(weight or math.exp(-1), rel=1e-3)


def test_gradients_stop_where_the_verdict_is_clear() -> None:
    real, fake = torch.tensor([2.0, 0.5], requires_grad=True), torch.tensor([-2.0, 0.5], requires_grad=True)
    hinge_d(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == [0.0, -0.5]
    assert fake.grad.tolist() == [0.0, 0.5]


def test_weights_of_another_shape_do_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"fake: scores \(4,\), but weights \(4, 1\)"):
        hinge_d(torch.zeros(4), torch.zeros(4), fake_weight=torch.ones(4, 1))
