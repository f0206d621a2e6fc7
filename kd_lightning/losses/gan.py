"""Losses of generators and discriminators on the discriminator's scores, and CcGAN's weights of nearby labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def hinge_d(
    real: Tensor, fake: Tensor, *, real_weight: Tensor | None = None, fake_weight: Tensor | None = None
) -> Tensor:
    """mean(w_r relu(1 - D(real))) + mean(w_f relu(1 + D(fake))), the discriminator's hinge loss.

    Lim and Ye (2017), with the weights of CcGAN's soft vicinity (Ding et al., ICLR 2021). CcGAN's formula divides by
    the sum of the weights; its code and this function divide by their number.

    Args:
        real: scores (N,) of real images.
        fake: scores (M,) of generated images.
        real_weight: (N,), or None for 1.
        fake_weight: (M,), or None for 1.
    """
    terms = {"real": (F.relu(1 - real.float()), real_weight), "fake": (F.relu(1 + fake.float()), fake_weight)}
    for side, (loss, weight) in terms.items():
        if weight is not None and weight.shape != loss.shape:
            raise ValueError(f"{side}: scores {tuple(loss.shape)}, but weights {tuple(weight.shape)}")
    return torch.stack([(loss if w is None else w * loss).mean() for loss, w in terms.values()]).sum()


def hinge_g(fake: Tensor) -> Tensor:
    """-mean(D(fake)), the generator's loss that goes with :func:`hinge_d`."""
    return -fake.float().mean()


def vicinity_weight(label: Tensor, target: Tensor, nu: float) -> Tensor:
    """exp(-nu (label - target)^2), the soft vicinity of CcGAN, for labels in [0, 1] of one shape."""
    return torch.exp(-nu * (label - target).square())


def least_squares_d(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 [mean (D(real) - 1)^2 + mean D(fake)^2], of LSGAN (Mao et al., ICCV 2017); scores of any shape."""
    return ((real.float() - 1).square().mean() + fake.float().square().mean()) / 2


def least_squares_g(fake: Tensor) -> Tensor:
    """Mean (D(fake) - 1)^2, the generator's loss that goes with :func:`least_squares_d`."""
    return (fake.float() - 1).square().mean()


def logistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """mean(softplus(-D(real))) + mean(softplus(D(fake))), the discriminator's cross-entropy; 2 ln 2 at scores of 0.

    Goodfellow et al., NeurIPS 2014; scores are logits of any shape, D(x) = 1 being real.
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def minimax_g(fake: Tensor) -> Tensor:
    """Mean log(1 - sigmoid(D(fake))): the generator's side of :func:`logistic_d`, which saturates at low scores."""
    return -F.softplus(fake.float()).mean()


def heuristic_g(fake: Tensor) -> Tensor:
    """-mean(log sigmoid(D(fake))): the generator's loss of Goodfellow et al. that does not saturate at low scores."""
    return F.softplus(-fake.float()).mean()


def gradient_penalty(scores: Tensor, points: Tensor) -> Tensor:
    """Mean (||gradient of D at a point|| - 1)^2 of WGAN-GP (Gulrajani et al., NeurIPS 2017), unweighted.

    Args:
        scores: of the points, (N,); a point's score must not depend on another point.
        points: (N, ...), usually between a real and a generated image each; they require gradients.
    """
    (gradient,) = torch.autograd.grad(scores.float().sum(), points, create_graph=True)
    return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()
