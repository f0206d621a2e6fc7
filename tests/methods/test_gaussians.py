"""The toy of evolving generators: how many Gaussians they cover, and how far they are from them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from bars import fitted
from gaussians import Points, Thrower, Umpire, centres, mmd, modes_covered, points
from torch import nn
from toy import adam

from kd_lightning.core.tasks import Classification
from kd_lightning.methods.generators.ce_gan import CeGan
from kd_lightning.networks.generators.gan_blocks import from_pixels


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("modes", [8, 25])
def test_the_points_themselves_cover_every_gaussian(modes: int) -> None:
    found = points(2000, modes, 0.02, rng(0))
    assert modes_covered(found, modes, 0.02) == modes
    assert modes_covered(found + 0.07, modes, 0.02) == 0
    assert torch.pdist(centres(modes)).min() > 6 * 0.02
    assert mmd(found, points(2000, modes, 0.02, rng(1))) < 0.01


@pytest.mark.parametrize("modes", [8, 25])
def test_a_generator_that_has_lost_all_but_some_is_told(modes: int) -> None:
    found = points(2000, modes, 0.02, rng(0))
    near = torch.cdist(found, centres(modes)).argmin(1)
    kept = found[near < 3]
    assert modes_covered(kept, modes, 0.02) == 3
    assert mmd(kept, points(2000, modes, 0.02, rng(1))) > 0.1


def test_points_are_evolved_as_images_are() -> None:
    """A step moves them: two children of points, and a discriminator that has seen both sides."""
    torch.manual_seed(0)
    adams = partial(adam, lr=1e-3, betas=(0.5, 0.999))
    method = CeGan(
        student=nn.Linear(1, 1),
        teacher=None,
        task=Classification(4),
        latent=2,
        prior="normal",
        generator=Thrower(8),
        discriminator=Umpire(8),
        optimizer_d=adams,
        optimizer_g=adams,
        eval_size=64,
        crossovers=2,
    )
    fitted(method, Points(3, 48, 8, 0.02))
    made = method.population[0].images
    assert made is not None
    assert from_pixels(made).shape == (64, 1, 1, 2)
    assert sum(method.findings().values()) == 3
