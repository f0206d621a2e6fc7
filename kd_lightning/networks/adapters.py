"""Adapters between a student's features and a teacher's, which are trained with the student and not exported.

An adapter is built from the shapes of both, without the batch, one for each layer, and called with the features of
both, a tensor for one layer or a list for several; it returns what the loss compares, in the same form.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shapes: TypeAlias = Sequence[Sequence[int]]
Features: TypeAlias = Tensor | list[Tensor]


class Regressors(nn.Module):
    """Bring each of the student's maps to the teacher's channels, height and width, by a convolution each.

    As in Tian et al. (2020): 3x3 of stride 2 if the teacher's map is half as high, a transposed 4x4 if it is twice as
    high, else without padding to the smaller size; then batch norm. The regressors of FitNet (with a ReLU), and the
    connectors of AB (without, and none where the shapes fit).

    Args:
        student_shapes: (C, H, W) of each layer.
        teacher_shapes: (C, H, W) of each layer.
        relu: end in a ReLU.
        where_needed: leave layers as they are whose shapes fit.
    """

    def __init__(
        self, *, student_shapes: Shapes, teacher_shapes: Shapes, relu: bool = True, where_needed: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for s, t in paired(student_shapes, teacher_shapes):
            if where_needed and tuple(s) == tuple(t):
                self.layers.append(nn.Identity())
            else:
                self.layers.append(nn.Sequential(_resizing(s, t), nn.BatchNorm2d(t[0]), *([nn.ReLU()] if relu else [])))

    def forward(self, student: Features, teacher: Features) -> tuple[Features, Features]:
        """The student's features in the teacher's shapes, and the teacher's."""
        return _each(self.layers, student), teacher


class Widened(nn.Module):
    """Bring each of the student's features to the teacher's number of channels, by one linear map each.

    A convolution of ``kernel`` with batch norm for maps, such as the connectors of OFD and of ICKD; a linear layer for
    vectors, such as that of SRD and of PAD. The loss averages maps of different size.

    Args:
        student_shapes: (C, H, W) or (D,) of each layer.
        teacher_shapes: (C, H, W) or (D,) of each layer.
        kernel: height and width of the convolutions, odd.
        batch_norm: one after each convolution.
    """

    def __init__(
        self, *, student_shapes: Shapes, teacher_shapes: Shapes, kernel: int = 1, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for s, t in paired(student_shapes, teacher_shapes):
            if len(s) < 3 or tuple(s[1:]) == (1, 1):
                self.layers.append(nn.Sequential(nn.Flatten(), nn.Linear(prod(s), prod(t))))
                continue
            convolution = nn.Conv2d(s[0], t[0], kernel, padding=kernel // 2, bias=not batch_norm)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
            self.layers.append(nn.Sequential(convolution, *([nn.BatchNorm2d(t[0])] if batch_norm else [])))

    def forward(self, student: Features, teacher: Features) -> tuple[Features, Features]:
        """The student's features with the teacher's channels, and the teacher's."""
        return _each(self.layers, student), teacher


class MeanRegressors(nn.Module):
    """Predict the teacher's features from the student's by three 1x1 convolutions, of the teacher's width: VID.

    Args:
        student_shapes: (C, H, W) of each layer.
        teacher_shapes: (C, H, W) of each layer.
    """

    def __init__(self, *, student_shapes: Shapes, teacher_shapes: Shapes) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for s, t in paired(student_shapes, teacher_shapes):
            widths = (s[0], t[0], t[0], t[0])
            convolutions = [nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)]
            self.layers.append(nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2]))

    def forward(self, student: Features, teacher: Features) -> tuple[Features, Features]:
        """Predictions for each layer, and the teacher's features; the larger student's maps are averaged first."""
        students = [student] if isinstance(student, Tensor) else student
        teachers = [teacher] if isinstance(teacher, Tensor) else teacher
        pooled = [
            s if s.shape[2] <= t.shape[2] else F.adaptive_avg_pool2d(s, (t.shape[2], t.shape[3]))
            for s, t in zip(students, teachers, strict=True)
        ]
        return _each(self.layers, pooled[0] if isinstance(student, Tensor) else pooled), teacher


class Embeddings(nn.Module):
    """Embed the features of both networks in one space, by a linear layer each: CC, CRD.

    Args:
        student_shapes: shape of the student's features, one layer.
        teacher_shapes: shape of the teacher's.
        width: values of an embedding.
    """

    def __init__(self, *, student_shapes: Shapes, teacher_shapes: Shapes, width: int = 128) -> None:
        super().__init__()
        self.student = nn.Linear(prod(student_shapes[0]), width)
        self.teacher = nn.Linear(prod(teacher_shapes[0]), width)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, width) of both."""
        return self.student(student.flatten(1)), self.teacher(teacher.flatten(1))


class Paraphraser(nn.Module):
    """The teacher's maps to factors of fewer channels and back: FT's first stage (Kim et al., NeurIPS 2018).

    Args:
        teacher_shapes: (C, H, W), one layer.
        rate: the factors' channels are this share of the teacher's.
        batch_norm: one after each convolution.
    """

    def __init__(self, *, teacher_shapes: Shapes, rate: float = 0.5, batch_norm: bool = False) -> None:
        super().__init__()
        channels = teacher_shapes[0][0]
        factors = int(channels * rate)
        self.encoder = leaky_layers(nn.Conv2d, (channels, channels, factors, factors), batch_norm=batch_norm)
        self.decoder = leaky_layers(nn.ConvTranspose2d, (factors, factors, channels, channels), batch_norm=batch_norm)

    def forward(self, student: Any, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The maps again (N, C, H, W), and the maps; nothing of the student."""
        return self.decoder(self.encoder(teacher)), teacher


class Translator(nn.Module):
    """The student's maps to factors of ``channels``, the teacher's through a paraphraser's encoder: FT's second stage.

    Args:
        student_shapes: (C, H, W), one layer.
        teacher_shapes: (C, H, W), one layer.
        rate: the factors' channels are this share of the teacher's.
        batch_norm: one after each convolution of the translator; the paraphraser, which stays as it is, has none.
    """

    def __init__(
        self,
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
        rate: float = 0.5,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        (s, *_), (t, *_) = student_shapes, teacher_shapes
        factors = int(t[0] * rate)
        self.student = leaky_layers(nn.Conv2d, (s[0], s[0], factors, factors), batch_norm=batch_norm)
        self.paraphraser = Paraphraser(teacher_shapes=teacher_shapes, rate=rate).eval().requires_grad_(False)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of both, (N, M, H, W)."""
        with torch.no_grad():
            told = self.paraphraser.encoder(teacher)
        return self.student(student), told


class SelfSupervision(nn.Module):
    """The teacher's embeddings by a head that SSKD trains first (Xu et al., ECCV 2020): two linear layers.

    Args:
        teacher_shapes: (D,), one layer.
    """

    def __init__(self, *, teacher_shapes: Shapes) -> None:
        super().__init__()
        self.layers = _two_layers(prod(teacher_shapes[0]))

    def forward(self, student: Any, teacher: Tensor) -> tuple[Tensor, None]:
        """Embeddings (N, D); nothing of the student."""
        return self.layers(teacher.flatten(1)), None


class SelfSupervised(nn.Module):
    """Embeddings of both by a head each, the teacher's trained before: SSKD's second stage.

    Args:
        student_shapes: (D,), one layer.
        teacher_shapes: (E,), one layer.
    """

    def __init__(self, *, student_shapes: Shapes, teacher_shapes: Shapes) -> None:
        super().__init__()
        self.student = _two_layers(prod(student_shapes[0]))
        self.teacher = SelfSupervision(teacher_shapes=teacher_shapes).eval().requires_grad_(False)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) and (N, E)."""
        with torch.no_grad():
            told, _ = self.teacher(None, teacher)
        return self.student(student.flatten(1)), told


class Averaged(nn.Module):
    """The larger of two maps averaged to the height and width of the smaller, such as SimKD's; nothing is trained."""

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of one height and width."""
        height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
        return F.adaptive_avg_pool2d(student, (height, width)), F.adaptive_avg_pool2d(teacher, (height, width))


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def _each(layers: nn.ModuleList, features: Features) -> Features:
    """Each layer's module on its features."""
    if isinstance(features, Tensor):
        (only,) = layers
        one: Tensor = only(features)
        return one
    return [layer(feature) for layer, feature in zip(layers, features, strict=True)]


def _resizing(student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
    """The convolution from the student's shape (C, H, W) to the teacher's."""
    (inputs, *size), (outputs, *wanted) = student, teacher
    if size[0] == 2 * wanted[0]:
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    if 2 * size[0] == wanted[0]:
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    if size[0] >= wanted[0] and size[1] >= wanted[1]:
        return nn.Conv2d(inputs, outputs, (1 + size[0] - wanted[0], 1 + size[1] - wanted[1]))
    raise ValueError(f"no convolution enlarges the student's map {tuple(student)} to the teacher's {tuple(teacher)}")


def leaky_layers(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: Sequence[int], *, batch_norm: bool
) -> nn.Sequential:
    """3x3 convolutions, each with a leaky ReLU."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [kind(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if batch_norm else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def paired(student: Shapes, teacher: Shapes) -> list[tuple[Sequence[int], Sequence[int]]]:
    """The shapes of each layer of both.

    Raises:
        ValueError: one has more layers.
    """
    if len(student) != len(teacher):
        raise ValueError(f"each layer of the student needs one of the teacher, got {len(student)} and {len(teacher)}")
    return list(zip(student, teacher, strict=True))
