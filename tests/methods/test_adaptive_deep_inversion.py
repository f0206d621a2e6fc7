"""Adaptive DeepInversion: pixels and student take turns, and the pixels look for what the student does not know."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import adi
from conftest import composed
from test_rounds import gradients, state
from torch import Tensor, nn
from toy import CLASSES, fit, trained_teacher

from kd_lightning.config.check import faults
from kd_lightning.losses.adversarial import jensen_shannon
from kd_lightning.losses.deep_inversion import inversion_losses
from kd_lightning.methods.data_free.adaptive_deep_inversion import AdaptiveDeepInversion


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher(batch_norm=True)


def small(**settings: Any) -> Any:
    """Periods of three rounds: two of pixels, one of the student."""
    return adi(**{"lr": 0.1, "inverted": 8, "steps": 4, "kd_steps": 2, "per_batch": 2, "kd_batch_size": 8} | settings)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Of every round: its terms, the pool after it, both networks' states."""
    seen: list[dict[str, Any]] = []
    step = AdaptiveDeepInversion.training_step

    def record(self: AdaptiveDeepInversion, **terms: Tensor) -> None:
        seen.append({"terms": {k: v.item() for k, v in terms.items()}})

    def stepping(self: AdaptiveDeepInversion, batch: Any, batch_idx: int) -> None:
        before, asked = state(self.student), self.teacher.asked  # type: ignore[union-attr]
        step(self, batch, batch_idx)
        seen[-1] |= {"pool": len(self.pool), "student moved": state(self.student) != before}
        seen[-1] |= {"asked": self.teacher.asked - asked, "training": self.student.training}  # type: ignore[union-attr]

    monkeypatch.setattr(AdaptiveDeepInversion, "record", record)
    monkeypatch.setattr(AdaptiveDeepInversion, "training_step", stepping)
    return seen


def test_a_batch_is_made_and_merged_then_the_student_steps(teacher: nn.Module, rounds: list[dict[str, Any]]) -> None:
    before = state(teacher)
    method = fit(small(), teacher, range(5), epochs=2, batch_norm=True)  # periods run on over epochs
    kinds = ["kd" if "kd" in each["terms"] else "pixels" for each in rounds]
    assert kinds == ["pixels", "pixels", "kd"] * 3 + ["pixels"]
    assert [each["pool"] for each in rounds] == [0, 8, 8, 8, 16, 16, 16, 24, 24, 24]
    # with batch norm in the student: its running statistics stand still as well while pixels move
    assert [each["student moved"] for each in rounds] == [kind == "kd" for kind in kinds]
    assert all(each["training"] for each in rounds)
    # the student is taught by one answer to each of the batch's 8 images
    assert [each["asked"] for each in rounds] == [16, 24, 8] * 3 + [16]
    assert method.images_made == 3 * 8
    assert method.pool.rows.dtype == torch.uint8  # type: ignore[union-attr]
    assert [method.student_updates(n) for n in (2, 3, 10)] == [0, 2, 6]
    assert state(teacher) == before
    assert not gradients(teacher)
    assert all(p.requires_grad for p in method.student.parameters())
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_hooks_sit_on_the_teacher_while_pixels_move_and_no_longer(
    teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked: list[int] = []
    forward = type(teacher).forward

    def watched(self: nn.Module, x: Tensor) -> Tensor:
        if self is teacher:
            hooked.append(sum(len(m._forward_pre_hooks) for m in self.modules()))
        return forward(self, x)

    monkeypatch.setattr(type(teacher), "forward", watched)
    fit(small(), teacher, range(3))
    # four steps on pixels, the look at the finished batch, the answers for the student
    assert hooked == [2, 2, 2, 2, 0, 0]


def test_the_losses(teacher: nn.Module, rounds: list[dict[str, Any]]) -> None:
    made: list[Tensor] = []
    make = small(steps=2, jitter=0, bn=2.0, tv=0.3, l2=0.2, compete=5.0, per_batch=1, kd_steps=1, lr=0.0)

    def keeping(**base: Any) -> AdaptiveDeepInversion:
        method = make(**base)
        begin = method.begin
        method.begin = lambda noise: (made.append(noise.clone()), begin(noise))  # type: ignore[method-assign]
        return method

    student = fit(keeping, teacher, range(2)).student.eval()
    y = torch.arange(8) % CLASSES
    t, wanted = inversion_losses(teacher, made[0], y, bn=2.0, tv=0.3, l2=0.2)  # type: ignore[arg-type]
    s = student(made[0] * teacher.std + teacher.mean)
    wanted["compete"] = 5 * (1 - jensen_shannon(s, t) / math.log(2))
    assert rounds[0]["terms"] == pytest.approx({k: v.item() for k, v in wanted.items()}, rel=1e-4)
    assert rounds[0]["terms"].keys() == {"class", "bn", "prior", "compete"}


def test_pixels_leave_the_range_of_images_unless_they_are_clipped(teacher: nn.Module) -> None:
    outside = {}
    for clip in (False, True):
        method = fit(small(lr=3.0, clip=clip), teacher, range(1))  # before the batch is finished
        x = method.pixels * teacher.std + teacher.mean  # type: ignore[operator]
        outside[clip] = (x.min().item() < -0.01, x.max().item() > 1.01)
    assert outside == {False: (True, True), True: (False, False)}


@pytest.mark.parametrize(
    ("legacy", "opposite", "alike"), [(False, 0.0, 1.0), (True, 0.0, 1.0)], ids=["paper", "legacy"]
)
def test_competition_is_between_zero_and_one(legacy: bool, opposite: float, alike: float, teacher: nn.Module) -> None:
    method = fit(small(legacy_js=legacy), teacher, range(0))
    here, there = torch.tensor([[900.0, 0, 0, 0]]), torch.tensor([[0.0, 900, 0, 0]])
    assert method.competition(here, there).item() == pytest.approx(opposite, abs=1e-6)  # type: ignore[operator]
    assert method.competition(here, here).item() == pytest.approx(alike, abs=1e-6)  # type: ignore[operator]


def test_the_legacy_competition_lets_go_where_both_disagree_most(teacher: nn.Module) -> None:
    pulls = {}
    for legacy in (False, True):
        s = torch.tensor([[20.0, 0.0, 0.0, 0.0]])
        t = torch.tensor([[0.0, 20.0, 0.0, 0.0]], requires_grad=True)
        fit(small(legacy_js=legacy), teacher, range(0)).competition(s, t).backward()  # type: ignore[operator]
        assert t.grad is not None
        pulls[legacy] = t.grad.abs().sum().item()
    assert pulls[True] == 0
    assert pulls[False] > 1e-3


def test_competition_makes_pixels_on_which_the_two_disagree(teacher: nn.Module) -> None:
    def disagreement(compete: float) -> float:
        method = fit(small(inverted=64, steps=40, per_batch=20, kd_steps=20, compete=compete), teacher, range(2))
        assert method.seen is not None
        method.student.eval()
        return jensen_shannon(method.student(method.seen.images), method.seen.teacher).item()

    assert disagreement(10.0) > disagreement(0.0) + 0.02


def test_steps_that_do_not_divide_are_refused(teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match="per_batch must divide kd_steps=2, got 3"):
        fit(small(per_batch=3), teacher, range(1))


def test_a_teacher_without_batch_norm_is_refused_before_anything_runs() -> None:
    assert not faults(composed("method=adaptive_deep_inversion", "teacher.net.batch_norm=true"))
    (fault,) = faults(composed("method=adaptive_deep_inversion", "teacher=small_conv"))
    assert fault.startswith("method: AdaptiveDeepInversion reads the teacher's batch-norm statistics, but SmallConvNet")


def test_a_run_that_ends_before_the_student_starts(tiny: Any) -> None:
    short = ("+trainer.limit_train_batches=1", "method.inverted=8", "method.per_batch=2", "method.scheduler=null")
    result = tiny("method=adaptive_deep_inversion", "teacher.net.batch_norm=true", *short)
    assert result["cost"]["images_synthesised"] == 0
    assert "generated/agreement" not in result["metrics"]
