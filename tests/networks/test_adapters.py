"""Adapters: what comes out has the shapes that the loss needs, and what is trained gets a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.networks.adapters import (
    Embeddings,
    MeanRegressors,
    Paraphraser,
    Regressors,
    Translator,
    Widened,
)
from kd_lightning.networks.attention_fusion import AttentionFusion, shares

STUDENT, TEACHER = [(4, 8, 8), (6, 4, 4), (8, 2, 2)], [(5, 16, 16), (7, 4, 4), (9, 1, 1)]


def maps(shapes: Any) -> list[Tensor]:
    return [torch.randn(3, *shape) for shape in shapes]


def check_trained(adapter: nn.Module, compared: Any) -> None:
    sum(one.square().mean() for one in compared).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("adapter", "size"),
    [(Regressors, "teacher"), (Widened, "student"), (AttentionFusion, "teacher"), (MeanRegressors, "smaller")],
)
def test_the_students_maps_get_the_teachers_channels(adapter: Any, size: str) -> None:
    net = adapter(student_shapes=STUDENT, teacher_shapes=TEACHER)
    teacher = maps(TEACHER)
    adapted, told = net(maps(STUDENT), teacher)
    assert all(torch.equal(a, b) for a, b in zip(told, teacher, strict=True))
    sizes = {"teacher": [16, 4, 1], "student": [8, 4, 2], "smaller": [8, 4, 1]}[size]
    assert [tuple(a.shape) for a in adapted] == [(3, c, s, s) for c, s in zip([5, 7, 9], sizes, strict=True)]
    check_trained(net, adapted)


@pytest.mark.parametrize("adapter", [Regressors, Widened, MeanRegressors])
def test_one_layer_is_a_tensor(adapter: Any) -> None:
    net = adapter(student_shapes=STUDENT[:1], teacher_shapes=TEACHER[:1])
    adapted, told = net(*(maps(shapes[:1])[0] for shapes in (STUDENT, TEACHER)))
    assert adapted.shape[:2] == told.shape[:2]


def test_regressors_leave_alone_what_fits_and_say_what_they_cannot_enlarge() -> None:
    net = Regressors(student_shapes=STUDENT, teacher_shapes=[STUDENT[0], *TEACHER[1:]], where_needed=True, relu=False)
    s = maps(STUDENT)
    adapted, _ = net(s, s)
    assert adapted[0] is s[0]
    assert adapted[1].min() < 0
    assert not any(isinstance(module, nn.ReLU) for module in net.modules())
    with pytest.raises(ValueError, match=r"\(4, 3, 3\) to the teacher's \(5, 8, 8\)"):
        Regressors(student_shapes=[(4, 3, 3)], teacher_shapes=[(5, 8, 8)])


def test_vectors_are_widened_by_a_linear_layer() -> None:
    for student, teacher in (((6,), (9,)), ((6, 1, 1), (9, 1, 1))):
        net = Widened(student_shapes=[student], teacher_shapes=[teacher])
        adapted, _ = net(torch.randn(3, *student), torch.randn(3, *teacher))
        assert adapted.shape == (3, 9)
        assert sum(p.numel() for p in net.parameters()) == 6 * 9 + 9


def test_embeddings_of_both_networks_are_trained() -> None:
    net = Embeddings(student_shapes=[(4, 2, 2)], teacher_shapes=[(9,)], width=5)
    both = net(torch.randn(3, 4, 2, 2), torch.randn(3, 9))
    assert [one.shape for one in both] == [(3, 5), (3, 5)]
    check_trained(net, both)


def test_fusion_takes_pooled_features_as_maps_of_one_pixel() -> None:
    net = AttentionFusion(student_shapes=[(4, 8, 8), (6,)], teacher_shapes=[(5, 4, 4), (9,)])
    fused, told = net([torch.randn(3, 4, 8, 8), torch.randn(3, 6)], [torch.randn(3, 5, 4, 4), torch.randn(3, 9)])
    assert [f.shape for f in fused] == [t.shape for t in told] == [(3, 5, 4, 4), (3, 9, 1, 1)]


def test_two_maps_are_weighed_as_if_side_by_side() -> None:
    layers, (a, b) = nn.Sequential(nn.Conv2d(6, 2, 1), nn.Sigmoid()), torch.randn(2, 4, 3, 5, 7)
    torch.testing.assert_close(shares(layers, a, b), layers(torch.cat([a, b], 1)))


def test_fusion_hands_later_layers_to_earlier_ones_only() -> None:
    net = AttentionFusion(student_shapes=STUDENT, teacher_shapes=TEACHER).eval()
    s, t = maps(STUDENT), maps(TEACHER)
    fused, _ = net(s, t)
    changed, _ = net([*s[:2], s[2] + 1], t)
    assert all(not torch.equal(a, b) for a, b in zip(fused, changed, strict=True))
    changed, _ = net([s[0] + 1, *s[1:]], t)
    assert [torch.equal(a, b) for a, b in zip(fused, changed, strict=True)] == [False, True, True]


def test_factors_of_the_frozen_paraphraser_are_what_the_translator_aims_at() -> None:
    torch.manual_seed(0)
    paraphraser = Paraphraser(teacher_shapes=[(8, 4, 4)])
    teacher = torch.randn(3, 8, 4, 4)
    again, told = paraphraser(None, teacher)
    assert again.shape == teacher.shape
    assert told is teacher
    assert paraphraser.encoder(teacher).shape == (3, 4, 4, 4)
    net = Translator(student_shapes=[(5, 4, 4)], teacher_shapes=[(8, 4, 4)])
    net.paraphraser.load_state_dict(paraphraser.state_dict())
    student, told = net(torch.randn(3, 5, 4, 4), teacher)
    assert torch.equal(told, paraphraser.encoder(teacher))
    assert student.shape == told.shape
    check_trained(net, (student,))
    assert not any(p.requires_grad for p in net.paraphraser.parameters())
