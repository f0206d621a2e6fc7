"""Losses of Triple-GAN, Bad GAN and UGAN: their closed forms, their gradients, and who gets none."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses.response import kl
from kd_lightning.losses.semi_supervised import (
    class_balance,
    conditional_entropy,
    feature_matching,
    fooling,
    manifold,
    pair_d,
    pair_g,
    pull_away,
    real_or_made,
    weighted_kl,
)

K = 10


def logits(n: int = 7, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, K, generator=torch.Generator().manual_seed(seed))


def test_at_zero() -> None:
    u, flat = torch.zeros(5), torch.zeros(5, K)
    assert pair_d(u, u, u).item() == pytest.approx(2 * math.log(2))
    assert pair_g(u).item() == pytest.approx(math.log(2) / 2)
    far = torch.full((5, K), -100.0)
    assert real_or_made(flat, far).item() == pytest.approx(0.5 * math.log(1.1))
    assert real_or_made(-far, flat).item() == pytest.approx(0.5 * math.log(11))
    assert conditional_entropy(flat).item() == pytest.approx(math.log(K))
    assert class_balance(flat).item() == pytest.approx(math.log(K))


def test_the_logit_of_made_is_zero() -> None:
    """log-softmax over the K logits and a 0 has the probabilities of real and made."""
    real, made = logits(seed=1).double(), logits(9, seed=2).double()
    with_zero = [F.pad(each, (0, 1)).log_softmax(1) for each in (real, made)]
    slow = -(with_zero[0][:, :K].logsumexp(1).mean() + with_zero[1][:, K].mean()) / 2
    assert real_or_made(real.float(), made.float()).item() == pytest.approx(slow.item(), rel=1e-5)
    # as the authors write it
    theirs = -real.logsumexp(1).mean() / 2 + F.softplus(real.logsumexp(1)).mean() / 2
    assert real_or_made(real.float(), torch.full_like(made, -100.0).float()).item() == pytest.approx(theirs.item())


def test_a_constant_on_all_logits_only_says_real() -> None:
    some = logits()
    for loss in (conditional_entropy, class_balance):
        assert torch.allclose(loss(some + 5), loss(some), atol=1e-5)
    assert real_or_made(some + 5, some - 5) < real_or_made(some, some)


def test_entropy_and_balance_have_their_bounds() -> None:
    sure = 50 * torch.eye(K)
    assert conditional_entropy(sure) < 1e-6
    assert class_balance(sure).item() == pytest.approx(math.log(K), abs=1e-5)
    assert class_balance(sure[:3].repeat(2, 1)) > math.log(K) + 1
    assert conditional_entropy(logits()) < math.log(K) < class_balance(logits(3))


def test_balance_follows_a_prior() -> None:
    prior = torch.tensor([0.7, 0.3] + [0.0] * (K - 2))
    assert class_balance(50 * torch.eye(K)[[0, 0, 0, 0, 0, 0, 0, 1, 1, 1]], prior) < class_balance(
        50 * torch.eye(K), prior
    )


def test_pull_away() -> None:
    x = torch.randn(1, 6)
    for n, features, wanted, code in (
        (5, x.repeat(5, 1), 1.0, 1.0),
        (4, torch.eye(4), 0.0, 1 / 4),
        (2, torch.cat([x, -x]), 1.0, 0.0),
        (4, torch.eye(4) - 1 / 4, 1 / 9, 0.0),  # the corners of a simplex
    ):
        assert pull_away(features).item() == pytest.approx(wanted, abs=1e-6), n
        assert pull_away(features, variant="code").item() == pytest.approx(code, abs=1e-6), n
        scaled = features * torch.rand(n, 1).add(0.1)
        assert pull_away(scaled).item() == pytest.approx(wanted, abs=1e-6)
    many = torch.randn(400, 128, generator=torch.Generator().manual_seed(0))
    assert pull_away(many).item() == pytest.approx(1 / 128, rel=0.1)


def test_feature_matching_sees_means_only() -> None:
    real = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    spread = real.mean(0) + 10 * (real - real.mean(0))
    assert feature_matching(spread, real) < 1e-5
    assert feature_matching(real + 2, real).item() == pytest.approx(2.0, rel=1e-5)
    assert feature_matching(real + 2, real, norm="l2").item() == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("form", ["argmax", "integrate"])
def test_gradient_of_fooling(form: str) -> None:
    x = logits().requires_grad_()
    u = torch.randn(7, K, generator=torch.Generator().manual_seed(3)).requires_grad_()
    p, m = x.detach().softmax(1), x.argmax(1)
    c = F.softplus(-u.detach())
    fooling(x, u[torch.arange(7), m] if form == "argmax" else u).backward()
    if form == "argmax":
        each = c.gather(1, m[:, None]) * p.gather(1, m[:, None]) * (F.one_hot(m, K) - p)
        assert (x.grad.gather(1, m[:, None]) >= 0).all()  # confidence falls, and never rises
    else:
        each = p * (c - (p * c).sum(1, keepdim=True))
    assert torch.allclose(x.grad, each / 7, atol=1e-6)
    assert u.grad is None


def test_pairs_of_all_labels_weigh_by_their_probability() -> None:
    u, p = torch.randn(4, K), logits(4).softmax(1)
    nothing = torch.full((3,), 100.0), torch.full((3,), -100.0)
    slow = sum(p[i, k] * F.softplus(u[i, k]) for i in range(4) for k in range(K)) / 4 / 2
    assert pair_d(*nothing, u, p).item() == pytest.approx(float(slow), rel=1e-5)


def test_discriminator_and_generator_pull_apart() -> None:
    real, made, classified = (torch.zeros(3, requires_grad=True) for _ in range(3))
    pair_d(real, made, classified).backward()
    assert torch.allclose(real.grad, torch.full((3,), -1 / 6))
    assert torch.allclose(made.grad, torch.full((3,), 1 / 12))
    assert torch.allclose(classified.grad, torch.full((3,), 1 / 12))
    u = torch.zeros(3, requires_grad=True)
    pair_g(u).backward()
    assert torch.allclose(u.grad, torch.full((3,), -1 / 12))


def test_manifold_is_the_jacobian_whatever_the_step() -> None:
    weight = torch.randn(K, 6, generator=torch.Generator().manual_seed(0))
    z, way = torch.randn(9, 6), F.normalize(torch.randn(9, 6), dim=1)
    slow = ((way @ weight.T) ** 2).sum(1).mean().item()
    for step in (1e-1, 1e-2):
        assert manifold(z @ weight.T, (z + step * way) @ weight.T, step=step).item() == pytest.approx(slow, rel=1e-2)


def test_weighted_kl() -> None:
    s, t = logits(seed=1), logits(seed=2)
    assert weighted_kl(s, t, torch.ones(7), 3.0).item() == pytest.approx(kl(s, t, temperature=3.0).item(), rel=1e-5)
    half = torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    assert weighted_kl(s, t, half, 3.0).item() == pytest.approx(kl(s[:1], t[:1], temperature=3.0).item() / 7, rel=1e-5)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="one score or probability for each"):
        fooling(logits(), torch.zeros(1))
    with pytest.raises(ValueError, match="one score or probability for each"):
        pair_d(torch.zeros(3), torch.zeros(3), torch.zeros(4, K), torch.zeros(1, K))
