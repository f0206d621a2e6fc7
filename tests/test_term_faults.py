"""Faults of terms with taps are named before data, weights or a device are touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import composed
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from kd_lightning.config.check import faults

MSE = {"_target_": "torch.nn.functional.mse_loss", "_partial_": True}
FIT = {"_target_": f"{__name__}.Fit", "_partial_": True}
HERE = ["data=mnist", "data.root=/nowhere", "teacher=small_conv", "student=small_conv_narrow"]


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


@pytest.fixture(scope="module")
def cfg() -> DictConfig:
    return composed("method=kd", "controls=none", *HERE)


@pytest.fixture(scope="module")
def chain() -> DictConfig:
    return composed("method=kd", "stages=assistant", *HERE)


def found(cfg: DictConfig, **changes: Any) -> list[str]:
    """The faults of a configuration with other values at dotted keys, where __ is a dot."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for key, value in changes.items():
            OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return faults(cfg)


def hint(**changes: Any) -> dict[str, Any]:
    tap = "features.-1"
    return {"method__terms__hint": {"weight": 1, "loss": MSE, "student": tap, "teacher": tap, "adapt": FIT} | changes}


def test_a_term_that_fits_has_no_fault(cfg: DictConfig) -> None:
    assert found(cfg, **hint()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "feature.1"}, ["hint.teacher: SmallConvNet has no feature.1; did you mean features.1 or"]),
        ({"student": "features.-1:in"}, ["hint.student", "expected features.-1:input or features.-1:output"]),
        ({"studnet": "head"}, ["terms.hint.studnet: Term has no", "did you mean method.terms.hint.student?"]),
        ({"loss": {"_target_": "torch.nn.MSELoss"}}, ["method.terms.hint.loss: give it _partial_: true"]),
        ({"adapt": None}, ["hint: student features.-1 (32, 8, 8) and teacher features.-1 (128, 8, 8) do not fit mse_"]),
        ({"student": "head"}, ["student head (10,)", "do not fit the adapter Fit"]),
        ({"given": {"cnv": "stage:a/b"}}, ["hint: given.cnv: Fit has no such part; it has conv"]),
    ],
)
def test_a_wrong_term_is_one_line(cfg: DictConfig, changes: Any, said: list[str]) -> None:
    lines = [line for line in found(cfg, **hint(**changes)) if "there is no stage" not in line]
    assert len(lines) == 1, lines
    assert all(part in lines[0] for part in said), lines


def test_modules_that_are_named_exist(cfg: DictConfig) -> None:
    assert found(cfg, **hint(), method__freeze=["features.-2"], method__lr_of={"head": 0.1, "terms.hint": 0.1}) == []
    wrong = found(cfg, **hint(), method__freeze=["feature.0"], method__lr_of={"terms.hnt": 0.1})
    assert len(wrong) == 2
    assert "method.freeze: SmallConvNet has no feature.0; did you mean features.0" in wrong[0]
    assert "method.lr_of: there is no terms.hnt; known: terms.response, terms.hint" in wrong[1]


def test_a_stage_keeps_the_files_that_are_given(chain: DictConfig) -> None:
    given = hint(given={".": "stage:assistant/hnt.safetensors"})
    lines = [line for line in found(chain, **given) if "stage assistant keeps no" in line]
    assert len(lines) == 1  # the assistant has the student's method, and so the student's fault
    assert lines[0].endswith("it keeps student.safetensors, hint.safetensors")
    assert lines[0].startswith("method.terms.hint.given..=stage:assistant/hnt.safetensors: stage assistant keeps no")


def test_who_looks_inside_needs_a_teacher_that_is_here(cfg: DictConfig) -> None:
    (line,) = found(cfg, **hint(), teacher__access="probs")
    assert "Distill looks inside the teacher, but teacher.access=probs gives answers alone" in line


def test_who_keeps_something_for_every_image_needs_the_same_images_again(cfg: DictConfig) -> None:
    remembers = hint(loss={**MSE, "_target_": f"{__name__}.Remembers"}, student="output", teacher="output", adapt=None)
    assert found(cfg, **remembers) == []
    noise = {"_target_": "kd_lightning.sources.noise.Noise", "rounds": 1, "batch_size": 8}
    (line,) = found(cfg, **remembers, source=noise, method__label=0)
    assert "Distill keeps something for every image, and this source makes them anew: use source=real" in line


def test_nothing_trains_a_student_that_no_term_looks_at(cfg: DictConfig) -> None:
    alone = {"one": {"weight": 1, "loss": MSE, "student": None, "teacher": None}}
    lines = found(cfg, method__terms=alone, method__label=0)
    assert any("nothing trains it: only a stage may do so" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"taught_by": "stage:assistent"}, "there is no stage assistent; did you mean assistant?"),
        ({"taught_by": "assistant"}, "taught_by=assistant: expected stage:NAME"),
        ({"assistant__teacher": "stage:assistant"}, "there is no stage assistant before it; those before: there is"),
        ({"controls__direct__teacher": "run"}, "controls.direct.teacher: expected stage:NAME, none, or true for"),
    ],
)
def test_a_teacher_is_the_student_of_a_stage_before(chain: DictConfig, changes: Any, said: str) -> None:
    lines = found(chain, **changes)
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_a_fit_is_checked_against_the_teacher_that_it_gets(chain: DictConfig) -> None:
    assert found(chain) == []
    tap = hint(student="features.1", teacher="features.7")
    lines = found(chain, **tap, assistant__student__widths=[8, 16])
    assert any(line.startswith("method.terms.hint.teacher: SmallConvNet has no features.7") for line in lines)
    assert not any(line.startswith("stages[0].method.terms.hint.teacher") for line in lines)
