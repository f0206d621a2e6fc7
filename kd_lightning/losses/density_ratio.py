"""Losses that fit the ratio of two densities to samples of both."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

CONSTANT = -1.3132616875182228
"""Softplus loss of a ratio that is 1 everywhere, -ln(1 + e): the value of an untrained network."""


def softplus_ratio(real: Tensor, fake: Tensor) -> Tensor:
    """mean(s(r_g) r_g - softplus(r_g)) - mean(s(r_r)), s the logistic function; minimal at r = p_real / p_fake.

    The softplus loss of Ding, Wang and Welch, *Subsampling Generative Adversarial Networks: Density Ratio Estimation in
    Feature Space with Softplus Loss* (IEEE TSP 2020), a Bregman divergence; its conditional form (cDR-RS, cGAN-KD)
    takes real and generated images of the same labels, and the mean over all of them.

    Args:
        real: ratios (N,) of real images, not negative.
        fake: ratios (M,) of generated images.
    """
    real, fake = real.float(), fake.float()
    return (fake.sigmoid() * fake - F.softplus(fake)).mean() - real.sigmoid().mean()


def penalised_softplus(real: Tensor, fake: Tensor, *, penalty: float = 0.01) -> Tensor:
    """:func:`softplus_ratio` + penalty (mean(r_g) - 1)^2: over generated images the true ratio has mean 1.

    Args:
        real: ratios (N,) of real images, not negative.
        fake: ratios (M,) of generated images.
        penalty: lambda, the weight of the second term.
    """
    return softplus_ratio(real, fake) + penalty * (fake.float().mean() - 1).square()
