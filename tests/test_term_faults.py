"""Faults of terms with taps are named before data, weights or a device are touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.config import resolvers
from kd_lightning.config.check import faults
from kd_lightning.config.overrides import read

MSE = "{_target_: torch.nn.functional.mse_loss, _partial_: true}"
FIT = f"{{_target_: {__name__}.Fit, _partial_: true}}"
HERE = ["data=mnist", "data.root=/nowhere", "teacher=small_conv", "student=small_conv_narrow", "controls=none"]


class Fit(nn.Module):
    def __init__(self, *, student_shapes: Any, teacher_shapes: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student_shapes[0][0], teacher_shapes[0][0], 1)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(student), teacher


class Remembers(nn.Module):
    def __init__(self, *, num_images: int) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(num_images))

    def forward(self, student: Tensor, teacher: Tensor, *, index: Tensor) -> Tensor:
        return self.seen[index].sum() + (student - teacher).sum()


@pytest.fixture(autouse=True)
def _registered() -> None:
    resolvers.register()


def found(*overrides: str) -> list[str]:
    composed = read(overrides)
    return composed.problems + faults(composed.cfg)


def hint(more: str = "", *, loss: str = MSE, student: str = "features.-1", teacher: str = "features.-1") -> str:
    taps = f"student: '{student}', teacher: '{teacher}'"
    return f"+method.terms.hint={{weight: 1, loss: {loss}, {taps}{more}}}"


def test_a_term_that_fits_has_no_fault() -> None:
    assert found("method=kd", *HERE, hint(f", adapt: {FIT}")) == []


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (
            hint(teacher="feature.1"),
            ["hint.teacher: SmallConvNet has no feature.1; did you mean features.1 or"],
        ),
        (hint(student="features.-1:in"), ["hint.student", "expected features.-1:input or features.-1:output"]),
        (
            hint(", studnet: head"),
            ["hint.studnet: Term has no", "did you mean method.terms.hint.student?"],
        ),
        (hint(loss="{_target_: torch.nn.MSELoss}"), ["method.terms.hint.loss: give it _partial_: true"]),
        (hint(), ["hint: student features.-1 (32, 8, 8) and teacher features.-1 (128, 8, 8) do not fit mse_loss, and"]),
        (hint(f", adapt: {FIT}", student="head"), ["student head (10,)", "do not fit the adapter Fit"]),
        (hint(f", adapt: {FIT}, given: {{cnv: stage:a/b}}"), ["hint: given.cnv: Fit has no such part; it has conv"]),
    ],
)
def test_a_wrong_term_is_one_line(term: str, said: list[str]) -> None:
    lines = [line for line in found("method=kd", *HERE, term) if "there is no stage" not in line]
    assert len(lines) == 1, lines
    assert all(part in lines[0] for part in said), lines


def test_who_looks_inside_needs_a_teacher_that_is_here() -> None:
    (line,) = found("method=kd", *HERE, hint(f", adapt: {FIT}"), "teacher.access=probs", "teacher.budget=100")
    assert "Distill looks inside the teacher, but teacher.access=probs gives answers alone" in line
    assert found("method=kd", *HERE, "teacher.access=probs", "source=queried", "method.label=0") == []


def test_who_keeps_something_for_every_image_needs_the_same_images_again() -> None:
    remembers = hint(loss=f"{{_target_: {__name__}.Remembers, _partial_: true}}", student="output", teacher="output")
    assert found("method=kd", *HERE, remembers) == []
    (line,) = found("method=kd", *HERE, remembers, "source=noise", "method.label=0")
    assert "Distill keeps something for every image, and this source makes them anew: use source=real" in line


def test_nothing_trains_a_student_that_no_term_looks_at() -> None:
    alone = f"method.terms={{one: {{weight: 1, loss: {MSE}, student: null, teacher: null}}}}"
    lines = found("method=supervised", *HERE, alone, "method.label=0")
    assert any("nothing trains it: only a stage may do so" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "said"),
    {
        "taught_by=stage:assistent": "taught_by=stage:assistent: there is no stage assistent; did you mean assistant?",
        "taught_by=assistant": "taught_by=assistant: expected stage:NAME",
        "+assistant.teacher=stage:assistant": "there is no stage assistant before it; those before: there is none",
        "controls.direct.teacher=run": "controls.direct.teacher: expected stage:NAME, none, or true for the run's",
    }.items(),
)
def test_a_teacher_is_the_student_of_a_stage_before(override: str, said: str) -> None:
    there = ["method=kd", "stages=assistant", *HERE[:-1]]
    assert found(*there) == []
    lines = found(*there, override)
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_a_fit_is_checked_against_the_teacher_that_it_gets() -> None:
    tap = hint(student="features.1", teacher="features.7")
    lines = found("method=kd", "stages=assistant", *HERE[:-1], "assistant.student.widths=[8, 16]", tap)
    assert any(line.startswith("method.terms.hint.teacher: SmallConvNet has no features.7") for line in lines)
    assert not any(line.startswith("stages[0].method.terms.hint.teacher") for line in lines)
