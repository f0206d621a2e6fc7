"""The variational losses against closed forms and chance."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kd_lightning.losses.vae import gaussian_kl, pixel_cross_entropy, sample_gaussian


def test_kl_of_the_prior_to_itself_is_nothing() -> None:
    assert float(gaussian_kl(torch.zeros(3, 2), torch.zeros(3, 2))) == 0


def test_kl_of_a_known_gaussian_and_its_mean_over_the_batch() -> None:
    mean, logvar = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4)]])
    assert float(gaussian_kl(mean, logvar)) == pytest.approx(1.306853, abs=1e-6)
    half = gaussian_kl(torch.cat([mean, torch.zeros(1, 2)]), torch.cat([logvar, torch.zeros(1, 2)]))
    assert float(half) == pytest.approx(1.306853 / 2, abs=1e-6)


def test_kl_is_what_samples_say_and_never_negative() -> None:
    rng = torch.Generator().manual_seed(0)
    mean, logvar = torch.tensor([[0.5, -1.0]]), torch.tensor([[-1.0, 0.3]])
    z = sample_gaussian(mean, logvar, torch.randn(200_000, 2, generator=rng))
    q = torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(1)
    p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    assert float(gaussian_kl(mean, logvar)) == pytest.approx(float((q - p).mean()), abs=0.02)
    wild = [gaussian_kl(*(3 * torch.randn(2, 1, 4, generator=rng))) for _ in range(100)]
    assert min(wild) >= 0


def test_reconstruction_is_a_sum_over_pixels() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, images = torch.randn(5, 2, 4, 3, generator=rng), torch.rand(5, 2, 4, 3, generator=rng)
    mean = F.binary_cross_entropy(logits.sigmoid(), images)
    torch.testing.assert_close(pixel_cross_entropy(logits, images), 2 * 4 * 3 * mean)


def test_gradients_reach_mean_and_variance_through_a_sample() -> None:
    mean, logvar = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    noise = torch.tensor([[2.0, -1.0]])
    sample_gaussian(mean, logvar, noise).sum().backward()
    assert mean.grad is not None
    assert logvar.grad is not None
    assert mean.grad.tolist() == [[1, 1]]
    torch.testing.assert_close(logvar.grad, noise / 2)
