"""The CVAE's stage: its images are of the class they are asked for, which they are not before it has learned."""

from __future__ import annotations

from functools import partial
from typing import cast

import pytest
import torch
from torch import nn
from toy import CLASSES, adam, few, few_shot_context, fit, trained_teacher

from kd_lightning.config.check import faults
from kd_lightning.config.overrides import read
from kd_lightning.data.loader import TensorLoader
from kd_lightning.methods.generators.cvae import Cvae
from kd_lightning.networks.generators.cvae import MlpDecoder, MlpEncoder

SHAPE = {"size": 8, "num_classes": CLASSES, "widths": (32, 16)}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher()


def trained(teacher: nn.Module, lr: float) -> Cvae:
    torch.manual_seed(0)
    make = partial(Cvae, encoder=MlpEncoder(**SHAPE), generator=MlpDecoder(**SHAPE), optimizer=partial(adam, lr=lr))
    return cast(Cvae, fit(make, teacher, few().prepare(few_shot_context(teacher)), epochs=200))


def as_asked_for(method: Cvae, teacher: nn.Module) -> float:
    label = torch.arange(200) % CLASSES
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    return float((teacher(method.generator(z, label)).argmax(1) == label).float().mean())


def test_it_makes_images_of_the_class_asked_for(teacher: nn.Module) -> None:
    assert as_asked_for(trained(teacher, 3e-3), teacher) >= 0.9
    assert as_asked_for(trained(teacher, 0.0), teacher) <= 0.6


def test_the_student_and_the_teacher_are_left_alone(teacher: nn.Module) -> None:
    method = trained(teacher, 3e-3)
    assert all(p.grad is None for p in method.student.parameters())
    assert method.teacher is not None
    assert method.teacher.asked == 0
    assert method.student_updates(200) == 0


def test_its_class_is_the_teachers_answer_not_the_label(teacher: nn.Module) -> None:
    at = few_shot_context(teacher)
    at.dataset.train.labels[:] = at.dataset.train.labels.roll(1)  # type: ignore[union-attr]
    loader = few().prepare(at)
    seen = []
    encoder = MlpEncoder(**SHAPE)
    encoder.register_forward_pre_hook(lambda _, args: seen.append(args))
    make = partial(Cvae, encoder=encoder, generator=MlpDecoder(**SHAPE), optimizer=partial(adam, lr=1e-3))
    fit(make, teacher, cast(TensorLoader, loader))
    for x, label in seen:
        assert torch.equal(label, teacher(x).argmax(1))


def test_a_source_without_answers_is_refused() -> None:
    cfg, _, _ = read(["method=fs_bbt", "fs_bbt.source._target_=kd_lightning.sources.real.FewShot"])
    assert "stages[0].method: Cvae trains on the teacher's answers: use source=queried or few_asked" in faults(cfg)
