"""Adapters of KTAAD (He et al., CVPR 2019): a code of the teacher's logit map, and the student's map in its channels.

First the paraphraser learns to give the teacher's map again from half as many channels; then it stays as it is, and two
adapters bring the student's map to its code, one for each loss of :mod:`kd_lightning.losses.dense`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.networks.adapters import Shapes, leaky_layers


class LogitParaphraser(nn.Module):
    """The teacher's map (N, C, H, W) to a code (N, rate C, H, W) and back, by six 3x3 layers.

    Args:
        teacher_shapes: (C, H, W), one tap.
        rate: the code's channels are this share of the teacher's, k.
    """

    def __init__(self, *, teacher_shapes: Shapes, rate: float = 0.5) -> None:
        super().__init__()
        (channels, *_), *_ = teacher_shapes
        code = code_channels(channels, rate)
        self.encoder = leaky_layers(nn.Conv2d, (channels, channels, code, code), batch_norm=True)
        self.decoder = leaky_layers(nn.ConvTranspose2d, (code, code, channels, channels), batch_norm=True)

    def forward(self, student: Any, teacher: Tensor) -> tuple[list[Tensor], Tensor]:
        """The map again and the code, beside the map; nothing of the student."""
        code = self.encoder(teacher)
        return [self.decoder(code), code], teacher


class LogitAdapter(nn.Module):
    """The student's map in the code's channels, by a 3x3 convolution, beside the teacher's code.

    Args:
        student_shapes: (C, H, W), one tap.
        teacher_shapes: (C, H, W), one tap.
        rate: of the paraphraser, which stays as it is.
        active: whether BatchNorm and ReLU follow, as for the adaptation loss; none do for the affinity.
    """

    def __init__(
        self, *, student_shapes: Shapes, teacher_shapes: Shapes, rate: float = 0.5, active: bool = True
    ) -> None:
        super().__init__()
        (inputs, *_), *_ = student_shapes
        code = code_channels(teacher_shapes[0][0], rate)
        after = [nn.BatchNorm2d(code), nn.ReLU()] if active else []
        self.student = nn.Sequential(nn.Conv2d(inputs, code, 3, padding=1), *after)
        self.paraphraser = LogitParaphraser(teacher_shapes=teacher_shapes, rate=rate).eval().requires_grad_(False)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps (N, rate C, H, W)."""
        with torch.no_grad():
            code = self.paraphraser.encoder(teacher)
        return self.student(student), code


def code_channels(channels: int, rate: float) -> int:
    """Channels of the code, at least one: 10 of 21."""
    return max(1, int(rate * channels))
