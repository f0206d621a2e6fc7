"""Rejection sampling of a generator by a density ratio, as in cDR-RS and cGAN-KD (Ding et al.).

Deviations (paper / authors' code / here):
    * A ratio of 0 everywhere: - / 0 / 0, and an endless loop / an error.
    * Number of batches: - / as many as it takes / at most ``max_rounds``.
    * Largest ratio: of the first draws / raised during sampling, and images accepted before it stay accepted / the
      code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kd_lightning.errors import TrainingError


class Accepted(NamedTuple):
    """``images`` (n, ...), kept of ``accepted`` ones among ``drawn`` ones; ``most``: the largest ratio."""

    images: Tensor
    drawn: int
    accepted: int
    most: float

    @property
    def rate(self) -> float:
        """Fraction of the drawn images that was accepted."""
        return self.accepted / self.drawn


@torch.no_grad()
def rejection(
    draw: Callable[[int], Tensor],
    ratio: Callable[[Tensor], Tensor],
    n: int,
    *,
    burn_in: int,
    batch_size: int,
    rng: torch.Generator,
    max_rounds: int = 1000,
) -> Accepted:
    """``n`` images of one label, each accepted with probability ratio / M.

    M is the largest ratio of ``burn_in`` images, which are discarded, and of all images drawn after them.

    Args:
        draw: generates k images (k, ...) of the label.
        ratio: their density ratios (k,), not negative, for the same label.
        n: number of images wanted.
        burn_in: number of images for the first M.
        batch_size: images drawn at a time.
        rng: on the images' device.
        max_rounds: number of batches after which sampling is given up.

    Raises:
        TrainingError: the ratio is 0 on all images, not finite, or accepts too few.
    """
    most = torch.zeros((), device=rng.device)
    for start in range(0, burn_in, batch_size):
        most = torch.maximum(most, ratio(draw(min(batch_size, burn_in - start))).float().max())
    kept: list[Tensor] = []
    accepted = drawn = 0
    for _ in range(max_rounds):
        images = draw(batch_size)
        ratios = ratio(images).float()
        most = torch.maximum(most, ratios.max())
        if not 0 < float(most) < float("inf"):
            raise TrainingError(
                f"the greatest density ratio of {burn_in + drawn + batch_size} made images is {float(most):g}: it does "
                "not tell images apart. Train it longer or with a lower learning rate, or set source.subsample=false"
            )
        chosen = torch.rand(len(ratios), generator=rng, device=ratios.device) * most <= ratios
        chosen &= ratios > 0  # u may be 0
        kept.append(images[chosen])
        accepted, drawn = accepted + len(kept[-1]), drawn + len(images)
        if accepted >= n:
            return Accepted(torch.cat(kept)[:n], drawn, accepted, float(most))
    raise TrainingError(
        f"the density ratio accepted {accepted} of {drawn} made images where {n} were wanted: it is far greater "
        f"({float(most):.3g}) on a few than on the others. Train generator and ratio longer, or set "
        "source.subsample=false"
    )
