"""Losses on features, relations and logits: slow references, closed forms, and what each of them has to satisfy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import pytest
import slow_references as slow
import torch
from torch import Tensor

from kd_lightning.losses import feature_maps, feature_vectors, logits, relations
from kd_lightning.losses.contrastive_memory import ContrastiveMemory
from kd_lightning.losses.feature_maps import (
    activation_boundary,
    attention,
    expected_negative,
    hierarchical_context,
    partial_l2,
    solution_flow,
    squared_difference,
)
from kd_lightning.losses.feature_vectors import PredictedVariance
from kd_lightning.losses.learned_temperature import LearnedTemperature
from kd_lightning.losses.logits import decoupled, dist, multi_level, standardised_kl
from kd_lightning.losses.relations import correlation_congruence, relational
from kd_lightning.losses.response import kl
from kd_lightning.losses.variational import VariationalInformation

N = 6


@dataclass(frozen=True)
class Loss:
    """One row of the table.

    Args:
        loss: what is tested.
        slow: the same in loops.
        student: shapes of the student's features without the batch, one for each layer.
        teacher: the teacher's; None: the same.
        equal: the loss of equal features; None: no fixed number.
        of_batch: whether it is a function of the batch and not a mean over samples.
        ordered: whether the order of the samples matters.
        any_width: whether widths may differ.
    """

    loss: Callable[..., Tensor]
    slow: Callable[..., float]
    student: tuple[tuple[int, ...], ...] = ((5,),)
    teacher: tuple[tuple[int, ...], ...] | None = None
    equal: float | None = 0.0
    of_batch: bool = False
    ordered: bool = False
    any_width: bool = False

    def features(self, *, seed: int = 0, equal: bool = False) -> tuple[Any, Any]:
        """Features of both; a list for several layers."""
        rng = torch.Generator().manual_seed(seed)
        s = [torch.randn(N, *shape, generator=rng) for shape in self.student]
        teacher = self.student if equal else self.teacher or self.student
        t = [a.clone() for a in s] if equal else [torch.randn(N, *shape, generator=rng) for shape in teacher]
        return (s, t) if len(s) > 1 else (s[0], t[0])

    def __call__(self, student: Any, teacher: Any, labels: Tensor | None = None) -> Tensor:
        """The loss, with labels where it takes any."""
        labels = LABELS if labels is None else labels
        return self.loss(
            student, teacher, **({"labels": labels} if "labels" in signature(self.loss).parameters else {})
        )


LABELS = torch.tensor([0, 4, 1, 1, 3, 2])
MAP, LARGE = ((3, 4, 4),), ((5, 8, 8),)
TABLE = {
    "hint": Loss(squared_difference, slow.squared_difference, MAP),
    "hint-vectors": Loss(squared_difference, slow.squared_difference),
    "attention": Loss(attention, slow.attention, MAP, LARGE, any_width=True),
    "attention-paper": Loss(partial(attention, variant="paper"), slow.attention_paper, MAP, LARGE, any_width=True),
    "factor": Loss(feature_maps.factor_transfer, slow.factor_transfer, MAP),
    "selectivity": Loss(feature_maps.neuron_selectivity, slow.neuron_selectivity, LARGE, MAP, any_width=True),
    "flow": Loss(solution_flow, slow.solution_flow, ((2, 8, 8), (3, 4, 4), (4, 2, 2))),
    "flow-paper": Loss(
        partial(solution_flow, variant="paper"), slow.solution_flow_paper, ((2, 8, 8), (3, 4, 4), (4, 2, 2))
    ),
    "boundary": Loss(activation_boundary, slow.activation_boundary, ((2, 4, 4), (3, 2, 2)), equal=None),
    "partial-l2": Loss(partial_l2, slow.partial_l2, ((2, 4, 4), (3, 2, 2)), of_batch=True, equal=None),
    "channels": Loss(feature_maps.channel_correlation, slow.channel_correlation, MAP),
    "context": Loss(hierarchical_context, slow.hierarchical_context, ((3, 8, 8),)),
    "similarity": Loss(
        relations.similarity_preserving, slow.similarity_preserving, MAP, LARGE, of_batch=True, any_width=True
    ),
    "congruence": Loss(correlation_congruence, slow.neighbours, of_batch=True, ordered=True),
    "congruence-paper": Loss(partial(correlation_congruence, variant="paper"), slow.gaussian_kernel, of_batch=True),
    "relational": Loss(relational, slow.relational, ((5,),), ((7,),), of_batch=True, any_width=True),
    "transfer": Loss(
        relations.probabilistic_transfer, slow.probabilistic_transfer, ((5,),), ((7,),), of_batch=True, any_width=True
    ),
    "standardised-power": Loss(
        feature_vectors.standardised_power, slow.standardised_power, of_batch=True, equal=math.log(1e-12)
    ),
    "decoupled": Loss(decoupled, slow.decoupled),
    "dist": Loss(partial(dist, temperature=2.0), slow.dist, of_batch=True),
    "standardised-kl": Loss(standardised_kl, slow.standardised_kl),
    "multi-level": Loss(multi_level, slow.multi_level, of_batch=True),
    "smoothed-labels": Loss(logits.smoothed_labels, slow.smoothed_labels, equal=None, any_width=True),
    "virtual-teacher": Loss(logits.virtual_teacher, slow.virtual_teacher, equal=None, any_width=True),
}
of_all = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)


def each(features: Any, change: Callable[[Tensor], Any]) -> Any:
    return change(features) if isinstance(features, Tensor) else [change(feature) for feature in features]


@of_all
def test_equals_a_slow_reference(case: Loss) -> None:
    for seed in range(3):
        s, t = case.features(seed=seed)
        doubles = (each(features, lambda f: f.double().numpy()) for features in (s, t))
        labels = {"labels": LABELS.numpy()} if "labels" in signature(case.slow).parameters else {}
        assert case(s, t).item() == pytest.approx(case.slow(*doubles, **labels), rel=2e-4)


@pytest.mark.parametrize("name", [name for name, case in TABLE.items() if case.equal is not None])
def test_equal_features_cost_nothing(name: str) -> None:
    case = TABLE[name]
    s, t = case.features(equal=True)
    s = each(s, Tensor.requires_grad_)
    loss = case(s, t)
    loss.backward()
    assert loss.item() == pytest.approx(case.equal, abs=2e-5)
    for feature in s if isinstance(s, list) else [s]:
        assert feature.grad.isfinite().all()
        assert feature.grad.abs().max() < 1e-3
    assert case(*case.features()) > loss + 1e-3


@of_all
def test_the_order_of_samples_does_not_matter(case: Loss) -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    s, t = case.features()
    moved = case(*(each(features, lambda f: f[order]) for features in (s, t)), LABELS[order])
    assert torch.allclose(moved, case(s, t), rtol=1e-4) != case.ordered


@of_all
def test_whether_it_is_a_mean_over_samples(case: Loss) -> None:
    s, t = case.features()
    halves = [case(*(each(features, lambda f, h=h: f[h::2]) for features in (s, t)), LABELS[h::2]) for h in (0, 1)]
    assert torch.allclose(torch.stack(halves).mean(), case(s, t), rtol=1e-3) != case.of_batch


@of_all
def test_it_computes_in_fp32_whatever_it_gets(case: Loss) -> None:
    s, t = (each(features, Tensor.bfloat16) for features in case.features())
    s = each(s, Tensor.requires_grad_)
    loss = case(s, t)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(case(s, t), loss)
    torch.testing.assert_close(case(each(s, Tensor.float), each(t, Tensor.float)), loss, atol=0, rtol=0)
    loss.backward()
    assert all(feature.grad.isfinite().all() for feature in (s if isinstance(s, list) else [s]))


@of_all
def test_features_that_do_not_fit_are_refused(case: Loss) -> None:
    if case.any_width:
        s, t = case.features()
        assert case(s, t).isfinite()
        return
    s, t = case.features()
    narrow = each(t, lambda f: f[:, :-1])
    with pytest.raises(ValueError, match=r"one shape"):
        case(s, narrow)


@of_all
def test_dead_features_give_finite_gradients(case: Loss) -> None:
    s, t = case.features()
    dead = each(s, lambda f: torch.zeros_like(f, requires_grad=True))
    loss = case(dead, t)
    loss.backward()
    assert loss.isfinite()
    assert all(feature.grad.isfinite().all() for feature in (dead if isinstance(dead, list) else [dead]))


def test_different_numbers_of_layers_or_images_are_refused() -> None:
    maps = torch.randn(N, 3, 4, 4)
    with pytest.raises(ValueError, match="got 2 and 1"):
        attention([maps, maps], [maps])
    with pytest.raises(ValueError, match="same images"):
        attention(maps, maps[:3])
    with pytest.raises(ValueError, match="compares one layer, got 2"):
        relational([maps, maps], maps)
    with pytest.raises(ValueError, match="two or more layers"):
        solution_flow(maps, maps)


def test_layers_are_added() -> None:
    a, b, c, d = (torch.randn(N, 3, 4, 4) for _ in range(4))
    for loss in (squared_difference, attention, feature_maps.neuron_selectivity, hierarchical_context):
        torch.testing.assert_close(loss([a, c], [b, d]), loss(a, b) + loss(c, d))


@pytest.mark.parametrize("size", [(8, 12), (6, 8), (8, 6)])
def test_context_averages_parts_of_the_map_itself(size: tuple[int, int]) -> None:
    """Also where 4 does not divide its height or width, so that parts overlap."""
    s, t = torch.randn(2, 2, 3, *size)
    pooled = [torch.nn.functional.adaptive_avg_pool2d(s - t, parts).square().mean() for parts in (size, 4, 2, 1)]
    expected = sum(each / 2**level for level, each in enumerate(pooled)) / 1.875
    torch.testing.assert_close(hierarchical_context(s, t), expected)


def test_kl_is_made_of_its_two_parts() -> None:
    torch.manual_seed(0)
    s, t, y = torch.randn(8, 10) * 3, torch.randn(8, 10) * 3, torch.randint(10, (8,))
    own = (t / 4).softmax(1).gather(1, y[:, None])[:, 0]
    parts = [
        decoupled(s[i : i + 1], t[i : i + 1], labels=y[i : i + 1], alpha=1.0, beta=1 - float(own[i])) for i in range(8)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), kl(s, t, temperature=4.0))


def test_decoupled_stays_finite_where_probabilities_underflow() -> None:
    s = torch.tensor([[0.0, 900.0, 0.0]], requires_grad=True)
    t = torch.tensor([[900.0, 0.0, 1.0]])
    loss = decoupled(s, t, labels=torch.tensor([0]), beta=1.0, temperature=1.0)
    loss.backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()
    assert loss.item() == pytest.approx(900 + 900 / (1 + 1 / math.e), rel=1e-3)


def test_dist_forgives_another_scale_of_correlated_answers() -> None:
    t = torch.randn(6, 5)
    s = (0.9 * t.softmax(1) + 0.1 / 5).log() + 7  # an affine map of the teacher's probabilities
    assert dist(s, t).item() == pytest.approx(0, abs=1e-5)
    maps = torch.randn(2, 5, 3, 4)
    flat = maps.movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(dist(maps.flip(3), maps), dist(maps.flip(3).movedim(1, -1).reshape(-1, 5), flat))


def test_standardised_logits_have_no_scale_and_no_shift() -> None:
    s, t = torch.randn(6, 5), torch.randn(6, 5)
    torch.testing.assert_close(standardised_kl(3 * s + 5, t / 7 - 2), standardised_kl(s, t), rtol=1e-4, atol=1e-6)


def test_relations_ignore_what_they_are_free_of() -> None:
    s, t = torch.randn(6, 5), torch.randn(6, 5)
    turn = torch.linalg.qr(torch.randn(5, 5)).Q
    torch.testing.assert_close(relational(3 * s @ turn + 1, t), relational(s, t), rtol=1e-3, atol=1e-4)
    for loss in (relations.similarity_preserving, relations.probabilistic_transfer):
        torch.testing.assert_close(loss(3 * s @ turn, t), loss(s, t), rtol=1e-3, atol=1e-6)


def test_closed_forms_of_maps() -> None:
    ones, zeros = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    assert hierarchical_context(3 * ones, ones).item() == pytest.approx(4)  # at every resolution
    # 0 is one margin from either side of the boundary
    assert activation_boundary(zeros, ones).item() == pytest.approx(0.003 * 3 * 64)
    assert activation_boundary([zeros, zeros], [ones, -ones]).item() == pytest.approx(0.003 * 3 * 64 * 1.5)
    assert activation_boundary(-ones, -ones).item() == 0
    # mean negative response -1: below it nothing is asked for, above it the distance from it
    assert partial_l2(-2 * ones, -ones).item() == 0
    assert partial_l2(zeros, -ones).item() == pytest.approx(3 * 64)
    assert partial_l2(zeros, -ones, margins=[torch.full((3,), -0.5)]).item() == pytest.approx(3 * 64 / 4)
    only_left, only_right = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    only_left[..., 0] = only_right[..., 1] = 5
    assert attention(only_left, only_right).item() == pytest.approx(1)
    assert attention(only_left, only_right, variant="paper").item() == pytest.approx(math.sqrt(2))
    assert feature_maps.neuron_selectivity(only_left, only_right).item() == pytest.approx(2)
    flow = solution_flow([2 * ones, ones], [ones, ones])
    assert flow.item() == pytest.approx(1)
    assert solution_flow([2 * ones, ones], [ones, ones], variant="paper").item() == pytest.approx(9)
    pair = (torch.eye(2).view(1, 2, 1, 2), torch.ones(1, 2, 1, 2))
    one = feature_maps.channel_correlation(*pair)
    assert one.item() == pytest.approx((2 * (1 - math.sqrt(0.5)) ** 2 + 1) / 2)
    two = [p.expand(4, -1, -1, -1) for p in pair]
    torch.testing.assert_close(feature_maps.channel_correlation(*two), one)
    torch.testing.assert_close(feature_maps.channel_correlation(*two, divisor="pairs"), one / 4)


def test_the_mean_negative_response_of_a_normal_variable() -> None:
    found = expected_negative(torch.tensor([0.0, 1.0, 10.0]), torch.tensor([1.0, 2.0, 1.0]))
    sample = 1 + 2 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    assert found[0].item() == pytest.approx(-math.sqrt(2 / math.pi), rel=1e-5)
    assert found[1].item() == pytest.approx(sample[sample < 0].mean().item(), rel=1e-2)
    assert found[2].item() == -3


def test_predicted_variances_are_fitted_where_features_cannot_agree() -> None:
    torch.manual_seed(0)
    loss = PredictedVariance(student_shapes=[(4,)])
    s, t = torch.randn(64, 4), torch.zeros(64, 4)
    t[:, 0] = 3 * torch.randn(64)
    with torch.no_grad():
        loss.log_variance[1].weight.zero_()
    closed = (s - t).square().mean() / (1 + 1e-6)
    torch.testing.assert_close(loss(s, t), closed)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        loss(s.zero_().add_(torch.randn(64, 4) * 1e-3), t).backward()
        optimiser.step()
    assert loss.log_variance(s).mean(0)[0].item() == pytest.approx(t[:, 0].square().mean().log().item(), abs=0.4)
    assert loss(s.bfloat16(), t.bfloat16()).dtype == torch.float32


def test_variances_of_the_variational_bound() -> None:
    loss = VariationalInformation(teacher_shapes=[(3, 4, 4), (2, 2, 2)])
    assert [tuple(rho.shape) for rho in loss.parameters()] == [(3,), (2,)]
    s = [torch.randn(N, 3, 4, 4), torch.randn(N, 2, 2, 2)]
    assert loss(s, s).item() == pytest.approx(math.log(5), rel=1e-4)  # half of it for each layer
    apart = loss([s[0] + 1, s[1]], s)
    assert apart.item() == pytest.approx(math.log(5) + 0.1, rel=1e-4)
    apart.backward()
    assert all(rho.grad is not None and rho.grad.abs().min() > 0 for rho in loss.rho)
    assert loss([f.bfloat16() for f in s], s).dtype == torch.float32


def test_the_learned_temperature_climbs_against_the_student() -> None:
    torch.manual_seed(0)
    loss = LearnedTemperature(ramp=10)
    s, t = torch.randn(N, 5, requires_grad=True), torch.randn(N, 5)
    start = 1 + 20 / (1 + math.exp(-1))
    torch.testing.assert_close(loss(s, t), kl(s, t, temperature=start))
    (reversed_early,) = torch.autograd.grad(loss(s, t, epoch=0), loss.theta)
    (reversed_late,) = torch.autograd.grad(loss(s, t, epoch=30), loss.theta)
    theta = loss.theta.detach().clone().requires_grad_()
    (straight,) = torch.autograd.grad(kl(s, t, temperature=1 + 20 * theta.sigmoid()), theta)
    torch.testing.assert_close(reversed_late, -straight)
    torch.testing.assert_close(reversed_early, -straight * (1 - math.cos(math.pi / 10)) / 2)


def contrast(n: int = 12, **settings: Any) -> ContrastiveMemory:
    torch.manual_seed(0)
    return ContrastiveMemory(**{"num_images": n, "width": 4, "negatives": 5, **settings})


def test_contrast_of_embeddings_that_are_all_alike() -> None:
    loss, same = contrast(), torch.ones(3, 4)
    loss.student_memory.copy_(torch.ones(12, 4) / 2)
    loss.teacher_memory.copy_(torch.ones(12, 4) / 2)
    found = loss(same, same, index=torch.tensor([1, 7, 8]), labels=torch.tensor([0, 1, 2]))
    # every score is 1/N: one image is as likely as all others
    assert found.item() == pytest.approx(2 * (math.log(6) + 5 * math.log(6 / 5)), rel=1e-4)


def test_contrast_equals_a_loop_and_moves_its_memory() -> None:
    loss = contrast()
    before = {"s": loss.student_memory.clone(), "t": loss.teacher_memory.clone()}
    index, labels = torch.tensor([3, 0, 9]), torch.tensor([1, 0, 1])
    s, t = torch.randn(3, 4), torch.randn(3, 4)
    drawn: list[Tensor] = []
    draw = loss.draw
    loss.draw = lambda index: drawn.append(draw(index)) or drawn[0]  # type: ignore[method-assign, func-returns-value]
    found = loss(s, t, index=index, labels=labels)
    total = 0.0
    for rows, memory in ((s, before["t"]), (t, before["s"])):
        unit = [np.array(slow.unit(row.tolist())) for row in rows]
        picked = [[int(i), *map(int, others)] for i, others in zip(index, drawn[0], strict=True)]
        scores = [
            [math.exp(float(u @ memory[i].double().numpy()) / 0.07) for i in row]
            for u, row in zip(unit, picked, strict=True)
        ]
        z = 12 * slow.mean(v for row in scores for v in row)
        for own, *others in scores:
            total -= math.log(own / z / (own / z + 5 / 12))
            total -= sum(math.log(5 / 12 / (v / z + 5 / 12)) for v in others)
    assert found.item() == pytest.approx(total / 3, rel=1e-3)
    moved = before["s"][3] / 2 + s[0] / s[0].norm() / 2
    torch.testing.assert_close(loss.student_memory[3], moved / moved.norm())
    torch.testing.assert_close(loss.teacher_memory[1], before["t"][1])
    z = loss.normalisers.clone()
    loss(s, t, index=index, labels=labels)
    assert torch.equal(loss.normalisers, z)


def test_negatives_are_drawn_evenly_from_other_classes() -> None:
    loss = contrast(12, negatives=4000)
    classes = torch.tensor([0, 1, 0, 1, 2, 2, 0, 1, 1, 0, 2, 2])
    loss.remember_classes(torch.arange(12), classes)
    counts = loss.draw(torch.tensor([4]))[0].bincount(minlength=12)
    assert set(counts.nonzero()[:, 0].tolist()) == set((classes != 2).nonzero()[:, 0].tolist())
    assert counts[classes != 2].min() > 380  # 500 each
    unlabelled = contrast(3, negatives=900)
    counts = unlabelled.draw(torch.tensor([1]))[0].bincount(minlength=3)
    assert counts[1] == 0
    assert counts.min(dim=0).values == 0
    assert min(counts[0], counts[2]) > 350


def test_contrast_notices_images_that_change_their_numbers() -> None:
    loss, rows = contrast(), torch.randn(2, 4)
    loss(rows, rows, index=torch.tensor([1, 2]), labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="image 2 had another label before"):
        loss(rows, rows, index=torch.tensor([2, 3]), labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="image 12 of a source with 12"):
        loss(rows, rows, index=torch.tensor([2, 12]), labels=torch.tensor([1, 1]))
    one_class = contrast(2)
    with pytest.raises(ValueError, match="all images are of one class"):
        one_class(rows, rows, index=torch.tensor([0, 1]), labels=torch.tensor([0, 0]))


def test_contrast_keeps_its_memory_in_the_checkpoint_and_falls_while_embeddings_are_learned() -> None:
    loss = contrast(8, negatives=7, width=8)
    assert {"student_memory", "teacher_memory", "classes", "normalisers"} == set(loss.state_dict())
    teacher, student = torch.eye(8), torch.randn(8, 8).requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.1)
    losses = []
    for _ in range(60):
        found = loss(student, teacher, index=torch.arange(8), labels=torch.arange(8))
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        losses.append(found.item())
    assert losses[-1] < 0.6 * losses[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student.bfloat16(), teacher.bfloat16(), index=torch.arange(8)).dtype == torch.float32
