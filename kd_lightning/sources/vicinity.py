"""Vicinities of regression labels: which images count as images of a label that few or none have exactly.

The vicinities of CcGAN (Ding et al., ICLR 2021; *Continuous Conditional Generative Adversarial Networks: Novel
Empirical Losses and Label Input Mechanisms*, TPAMI 2022). All labels here are places in [0, 1].
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from kd_lightning.errors import ConfigError
from kd_lightning.losses.gan import vicinity_weight

LEAST = 1e-3
"""Soft weight below which a label is outside the vicinity."""
REDRAWS = 1000
"""Number of redraws after which noise and vicinity are considered incompatible."""


def places(task: Any, labels: Tensor) -> Tensor:
    """Labels as generators receive them: classes unchanged, numbers as places in [0, 1]."""
    normalise = getattr(task, "normalise", None)
    return labels if normalise is None else normalise(labels)


def label_noise(labels: Tensor) -> float:
    """Sigma = 1.06 std(labels) N^(-1/5), Silverman's bandwidth, with the population's standard deviation."""
    return 1.06 * float(labels.double().std(correction=0)) * len(labels) ** -0.2


def widest_gap(labels: Tensor) -> float:
    """The widest gap between neighbouring distinct labels; 0 if there is only one."""
    gaps = labels.double().unique().diff()
    return float(gaps.max()) if len(gaps) else 0.0


class Vicinity:
    """Draws target labels, real images near them and labels for generated images, in batches.

    Args:
        labels: (N,) floats, places in [0, 1], in any order, on the device of the draws.
        kind: ``soft``: weights exp(-nu (label - target)^2), nu = 1 / kappa^2, within the vicinity where at least 1e-3;
            ``hard``: weights 1, within the vicinity where labels differ by at most kappa.
        m_kappa: kappa in widest gaps between neighbouring labels; 0 for exactly the existing labels.
        sigma: of the noise on targets; None for :func:`label_noise`.
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        kind: Literal["soft", "hard"] = "soft",
        m_kappa: float = 2.0,
        sigma: float | None = None,
    ) -> None:
        self.sorted, self.order = labels.float().sort(stable=True)
        self.unique = self.sorted.unique()
        self.sigma = label_noise(labels) if sigma is None else sigma
        self.kind, self.kappa = kind, abs(m_kappa) * widest_gap(labels)
        self.nu = 1 / self.kappa**2 if self.kappa else math.inf
        self.radius = self.kappa if kind == "hard" else self.kappa * math.sqrt(-math.log(LEAST))

    def goals(self, n: int, rng: torch.Generator) -> Tensor:
        """Labels (n,) drawn uniformly from the distinct ones, with noise; not clipped to [0, 1]."""
        base = torch.randint(len(self.unique), (n,), generator=rng, device=self.unique.device)
        return self._noisy(self.unique[base], rng)

    def targets(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`goals`, but redrawing the noise until every target has a real label in its vicinity.

        Returns:
            Targets (n,), and begin and end (n,) of the range of sorted labels in each vicinity.

        Raises:
            ConfigError: some vicinities are empty after many redraws.
        """
        base = self.unique[torch.randint(len(self.unique), (n,), generator=rng, device=self.unique.device)]
        target = self._noisy(base, rng)
        for _ in range(REDRAWS):
            first = torch.searchsorted(self.sorted, target - self.radius)
            last = torch.searchsorted(self.sorted, target + self.radius, right=True)
            lonely = first == last
            if not lonely.any():
                return target, first, last
            target = torch.where(lonely, self._noisy(base, rng), target)
        raise ConfigError(
            f"{int(lonely.sum())} of {n} labels had no image within {self.radius:.3g} after {REDRAWS} draws of noise "
            f"{self.sigma:.3g}: raise m_kappa={self.kappa and self.kappa / widest_gap(self.sorted):.3g}, or lower sigma"
        )

    def draw(self, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draws for one step of a discriminator: n targets, with a real and a generated image for each.

        Returns:
            ``target`` (n,); ``index`` (n,) of a real image, uniform over the vicinity; ``fake`` (n,), a label uniform
            on the vicinity within [0, 1]; ``real_weight`` and ``fake_weight`` (n,).
        """
        target, first, last = self.targets(n, rng)
        u, v = torch.rand(2, n, generator=rng, device=target.device)
        # u < 1, but u * count may round up to count
        inside = torch.minimum(first + (u.double() * (last - first)).long(), last - 1)
        low, high = (target - self.radius).clamp(min=0), (target + self.radius).clamp(max=1)
        fake = low + v * (high - low)
        return {
            "target": target,
            "index": self.order[inside],
            "fake": fake,
            "real_weight": self.weight(self.sorted[inside], target),
            "fake_weight": self.weight(fake, target),
        }

    def weight(self, label: Tensor, target: Tensor) -> Tensor:
        """The weight (N,) of images with labels ``label`` for the targets."""
        if self.kind == "hard" or not self.kappa:
            return torch.ones_like(target)
        return vicinity_weight(label, target, self.nu)

    def _noisy(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return base + self.sigma * torch.randn(base.shape, generator=rng, device=base.device)
