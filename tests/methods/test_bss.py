"""BSS: which images begin a walk and where to, what is added up, and what it costs nothing to leave out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cases import bss, real_images
from conftest import composed
from torch import Tensor, nn
from toy import adam, fit, network, patterns, trained_teacher

from kd_lightning.config.check import faults
from kd_lightning.core.tasks import Classification
from kd_lightning.losses.boundary_walk import CROSSED, THIRD, Walk
from kd_lightning.losses.response import kl, soft_cross_entropy
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.real_data import bss as bss_module
from kd_lightning.methods.real_data.bss import Bss, disagreement, other_classes, weights
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.teachers.white_box import FrozenTeacher


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher()


def method(teacher: nn.Module, **settings: Any) -> Bss:
    student = network((8, 16))
    return bss(**settings)(student=student, teacher=FrozenTeacher(teacher), task=Classification(4))


def test_the_schedule_of_the_paper() -> None:
    paper = partial(weights, alpha=(4.0, 1.0), beta=2.0, until=0.75)
    known = {1: (3.9625, 1.9667), 40: (2.5, 0.6667), 60: (1.75, 0.0), 80: (1.0, 0.0)}
    for epoch, expected in known.items():
        assert paper(epoch / 80) == pytest.approx(expected, abs=5e-5)
    assert all(paper(e / 80)[1] == 0 for e in range(60, 81))
    assert paper(59 / 80)[1] > 0


def test_the_base_class_is_never_drawn(teacher: nn.Module) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    draws = method(teacher).targets(logits.expand(100_000, -1), torch.zeros(100_000, dtype=torch.long))
    seen = torch.bincount(draws, minlength=4).double()
    assert seen[0] == 0
    q = logits[0].double().softmax(0)
    expected = 100_000 * q[1:] / (1 - q[0])
    assert ((seen[1:] - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = .001


def test_a_certain_teacher_keeps_the_proportions_of_the_others(teacher: nn.Module) -> None:
    p = other_classes(torch.tensor([[1000.0, 0.0, -1.0]]), torch.tensor([0]))
    torch.testing.assert_close(p, torch.tensor([[0.0, *torch.tensor([0.0, -1.0]).softmax(0)]]))
    second = method(teacher, target="second").targets(torch.tensor([[9.0, 0.0, 3.0, 1.0]] * 5), torch.zeros(5).long())
    assert second.tolist() == [2] * 5


def test_the_true_class_does_not_count_as_disagreement() -> None:
    label = torch.tensor([0, 0])
    t = torch.tensor([[0.98, 0.01, 0.01], [0.60, 0.39, 0.01]]).log()
    s = torch.tensor([[0.50, 0.25, 0.25], [0.60, 0.05, 0.35]]).log()
    found = disagreement(s, t, label)
    torch.testing.assert_close(found, torch.tensor([2 * 0.24**2, 2 * 0.34**2]))
    with_the_true_class = (t.exp() - s.exp()).pow(2).sum(1)
    assert with_the_true_class.argmax() == 0
    assert found.argmax() == 1


def certain(classes: list[int]) -> Tensor:
    return 5.0 * torch.eye(4)[classes]


@pytest.mark.parametrize("select", ["disagreement", "random"])
def test_base_images_are_those_both_get_right(teacher: nn.Module, select: Any) -> None:
    own = method(teacher, n_adv=3, select=select)
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    right, wrong = certain(label.tolist()), certain([1, 2, 3, 0, 1, 2])
    mixed = torch.where(torch.tensor([1, 0, 0, 0, 0, 0])[:, None].bool(), right, wrong)
    assert own.bases(right, mixed, label).tolist() == [0]
    assert own.bases(mixed, right, label).tolist() == [0]
    assert own.bases(wrong, right, label).tolist() == []
    assert len(set(own.bases(right, right, label).tolist())) == 3
    unsure = right.clone()
    unsure[4] *= 0.5
    if select == "disagreement":
        assert own.bases(unsure, right, label).tolist()[0] == 4


def test_soft_cross_entropy_is_kl_and_the_teachers_entropy(teacher: nn.Module) -> None:
    own = method(teacher)
    s, t = (torch.randn(7, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    s.requires_grad_()
    p = (t / 3).softmax(1)
    entropy = torch.special.entr(p).sum(1).mean()
    divergence = kl(s, t, temperature=3.0) / 9
    assert own.imitate(s, t).detach().item() == pytest.approx(float(divergence.detach() + entropy), rel=1e-5)
    gradients = [torch.autograd.grad(loss, s)[0] for loss in (own.imitate(s, t), divergence)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert own.imitate(t, t).item() == pytest.approx(float(entropy), rel=1e-5)


def soft(student: Tensor, teacher: Tensor) -> Tensor:
    return soft_cross_entropy(student, (teacher / 3).softmax(1), temperature=3.0)


def test_without_beta_it_is_distillation_to_the_bit(teacher: nn.Module) -> None:
    kd = partial(
        Distill, optimizer=partial(adam, lr=5e-3), label=1.0, terms={"response": {"weight": 2.0, "loss": soft}}
    )
    one, other, more = (
        fit(make, teacher, real_images(teacher), epochs=2).student.state_dict()
        for make in (bss(beta=0.0, alpha=(2.0, 2.0)), kd, bss(alpha=(2.0, 2.0)))
    )
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert not all(torch.equal(one[k], more[k]) for k in one)


def test_the_terms_of_a_step(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, float]] = []
    shown: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(
        Bss, "record", lambda self, **seen: steps.append({k: float(v.detach()) for k, v in seen.items()})
    )
    monkeypatch.setattr(Bss, "show", lambda self, x, t: shown.append((x, t)))
    student = fit(bss(lr=0.0), teacher, real_images(teacher), epochs=1).student.eval()
    assert len(steps) == 8
    assert {"label", "kd", "bss", "crossed"} == steps[0].keys()
    # one epoch of one: alpha is at its end, and beta past its own
    assert all(step["bss"] == 0 for step in steps)
    assert not shown

    steps.clear()
    student = fit(bss(lr=0.0, until=2.0), teacher, real_images(teacher), epochs=1).student.eval()
    with_walks = [step for step in steps if step["bss"]]
    assert len(with_walks) == len(shown) > 0
    for step, (x, t) in zip(with_walks, shown, strict=True):
        with torch.no_grad():
            assert step["bss"] == pytest.approx(float(soft(student(x), teacher(x))), rel=1e-4)
            torch.testing.assert_close(t, teacher(x), rtol=1e-4, atol=1e-4)
        assert 0 <= step["crossed"] <= 1
        assert len(x) <= 16


@pytest.mark.parametrize("keep", [True, False])
def test_walks_that_did_not_cross(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    def never(net: Any, x: Tensor, base: Tensor, target: Tensor, **settings: Any) -> Walk:
        reason = torch.full_like(base, THIRD)
        reason[0] = CROSSED
        return Walk(x, net(x), reason, torch.ones_like(base))

    seen: list[int] = []
    monkeypatch.setattr(bss_module, "boundary_walk", never)
    monkeypatch.setattr(Bss, "show", lambda self, x, t: seen.append(len(x)))
    fit(bss(keep_invalid=keep), teacher, real_images(teacher), epochs=3)
    assert seen
    assert (max(seen) > 1) == keep


@pytest.mark.parametrize("n", [1, 2])
def test_a_batch_of_one_or_two(teacher: nn.Module, n: int) -> None:
    from kd_lightning.data.loader import TensorLoader

    images, labels = patterns(n, seed=3)
    loader = TensorLoader((images * 255).byte(), labels, batch_size=n, shuffle=True)
    assert fit(bss(), teacher, loader, epochs=10).images_made > 0


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_running_statistics_of_the_student(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    passes: list[tuple[int, bool]] = []

    def noted(self: Any, opt: Any, loss: Tensor) -> None:
        norm = next(m for m in self.student.modules() if isinstance(m, nn.BatchNorm2d))
        passes.append((int(norm.num_batches_tracked), norm.training))

    monkeypatch.setattr(Distiller, "update", noted)
    made = fit(bss(student_bn=mode), teacher, real_images(teacher), epochs=2, batch_norm=True).images_made
    assert made
    assert all(training for _, training in passes)
    assert (passes[-1][0] > len(passes)) == (mode == "train")


def test_the_teacher_comes_out_as_it_went_in(teacher: nn.Module) -> None:
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    fit(bss(), teacher, real_images(teacher), epochs=2)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training


def test_a_black_box_is_refused_with_three_ways_out() -> None:
    assert not faults(composed("method=bss"))
    (fault,) = faults(composed("method=bss", "teacher.access=logits"))
    assert fault.startswith("method: Bss needs the teacher's gradients, but teacher.access=logits gives answers alone")
    for way in ("(1) walk on the student", "(2) train a white-box proxy", "(3) search the boundary by labels alone"):
        assert way in fault
    (fault,) = faults(composed("method=bss", "source=noise"))
    assert fault == "method: Bss trains on labels: use source=real or few_shot"


def test_an_epoch_is_counted_from_one(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(bss_module, "weights", lambda progress, *rest: (seen.append(progress), (1.0, 0.0))[1])
    fit(bss(), teacher, real_images(teacher), epochs=2)
    assert seen == [0.5] * 8 + [1.0] * 8
