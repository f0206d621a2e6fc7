"""ReviewKD's adapter, which fuses a student's maps from the last layer to the first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.networks.adapters import Shapes, paired


class AttentionFusion(nn.Module):
    """Fuse each of the student's maps with those of all later layers: ReviewKD (Chen et al., CVPR 2021, section 3.3).

    From the last layer to the first, a map goes through a 1x1 convolution, is added to the fused map of the next layer,
    enlarged, with a weight at each position for either, and through a 3x3 convolution to the teacher's channels.

    Args:
        student_shapes: (C, H, W) of each layer; (D,) counts as (D, 1, 1).
        teacher_shapes: (C, H, W) of each layer.
        widest: most channels of the fused maps.
    """

    def __init__(self, *, student_shapes: Shapes, teacher_shapes: Shapes, widest: int = 512) -> None:
        super().__init__()
        middle = min(widest, student_shapes[-1][0])
        self.squeeze, self.expand, self.weigh = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for s, t in paired(student_shapes, teacher_shapes):
            self.squeeze.append(nn.Sequential(nn.Conv2d(s[0], middle, 1, bias=False), nn.BatchNorm2d(middle)))
            self.expand.append(nn.Sequential(nn.Conv2d(middle, t[0], 3, padding=1, bias=False), nn.BatchNorm2d(t[0])))
            for convolution in (self.squeeze[-1], self.expand[-1]):
                nn.init.kaiming_uniform_(convolution[0].weight, a=1)  # type: ignore[index]
        for _ in student_shapes[:-1]:
            self.weigh.append(nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()))

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The fused maps in the teacher's shapes, from the first layer to the last, and the teacher's."""
        students, teachers = ([f if f.ndim == 4 else f[:, :, None, None] for f in fs] for fs in (student, teacher))
        later: Tensor | None = None
        fused: list[Tensor] = []
        for layer in reversed(range(len(students))):
            own = self.squeeze[layer](students[layer])
            if later is not None:
                later = F.interpolate(later, own.shape[2:])
                here, there = shares(self.weigh[layer], own, later).chunk(2, 1)
                own = torch.addcmul(own * here, later, there)
            size = teachers[layer].shape[2:]
            later = own if own.shape[2:] == size else F.interpolate(own, size)
            fused.insert(0, self.expand[layer](later))
        return fused, teachers


def shares(layers: Any, first: Tensor, second: Tensor) -> Tensor:
    """``layers``, a 1x1 convolution and a sigmoid, of two maps (N, C, H, W) side by side, which are not copied."""
    convolution, sigmoid = layers
    weights = convolution.weight.flatten(1).chunk(2, 1)
    one, two = (F.linear(maps.movedim(1, -1), w) for maps, w in zip((first, second), weights, strict=True))
    weighed: Tensor = sigmoid((one + two + convolution.bias).movedim(-1, 1))
    return weighed
