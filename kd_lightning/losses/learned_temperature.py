"""Distillation at a temperature that is learned against the student."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kd_lightning.losses.domains import reverse_gradient
from kd_lightning.losses.response import kl


class LearnedTemperature(nn.Module):
    """KL at a temperature T that is learned to make it larger: CTKD (Li et al., AAAI 2023).

    T = lowest + span * sigmoid(theta). The gradient of theta is reversed; its strength grows from 0 to 1 over the first
    ``ramp`` epochs by a cosine.

    Deviations (paper / authors' code / here): one temperature for all samples or one for each / both / one for all.

    Args:
        lowest: least temperature.
        span: the largest is ``lowest + span``.
        ramp: epochs until the reversed gradient has its full strength.
    """

    def __init__(self, *, lowest: float = 1.0, span: float = 20.0, ramp: int = 10) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1))
        self.lowest, self.span, self.ramp = lowest, span, ramp

    def forward(self, student: Tensor, teacher: Tensor, *, epoch: int = 0) -> Tensor:
        """T^2 KL of logits (N, K); ``epoch`` counts from 0."""
        strength = (1 - math.cos(math.pi * min((epoch + 1) / self.ramp, 1))) / 2
        theta = reverse_gradient(self.theta, strength)
        return kl(student, teacher, temperature=self.lowest + self.span * torch.sigmoid(theta))
