"""DFQ: the game stays where the teacher's batch norms have been."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import dfq
from conftest import composed
from torch import nn
from toy import fit, trained_teacher

from kd_lightning.config.check import faults
from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.image_prior import information_entropy, one_hot
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.data_free.dfq import Dfq


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher(batch_norm=True)


def test_the_generators_losses(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    terms: dict[str, float] = {}
    shown: list[torch.Tensor] = []
    answered: list[torch.Tensor] = []
    monkeypatch.setattr(Dfq, "record", lambda self, **seen: terms.update({k: v.item() for k, v in seen.items()}))
    monkeypatch.setattr(Dfq, "show", lambda self, x, t: shown.append(x.detach()))
    update = Distiller.update

    def updating(self: Any, opt: Any, loss: Any) -> None:
        if not shown:  # the generator's step: the student as it is now, in evaluation mode
            assert not self.student.training
            answered.append(self.student.state_dict()["net.head.weight"].clone())
        else:
            assert self.student.training
        update(self, opt, loss)

    monkeypatch.setattr(Dfq, "update", updating)
    make = dfq(1e-3)
    make.keywords["optimizer"].keywords["lr"] = 0.0
    student = fit(make, teacher, range(1)).student.eval()
    assert answered
    with torch.no_grad(), BatchNormTap(teacher) as tap:
        t = teacher(shown[0])
        wanted = {
            "adv": -kl(student(shown[0]), t),
            "bn": batch_norm_statistics(tap.statistics, tap.layers),
            "oh": one_hot(t),
            "balance": 20 * information_entropy(t),
        }
    for name, loss in wanted.items():
        assert terms[name] == pytest.approx(loss.item(), rel=1e-4), name
    assert terms["adv"] < 0
    assert len(shown) == 11


def test_the_generator_learns_in_training_mode_and_draws_for_the_student_in_evaluation_mode(
    teacher: nn.Module,
) -> None:
    modes: list[bool] = []
    make = dfq(1e-3)
    make.keywords["generator"].register_forward_pre_hook(lambda module, _args: modes.append(module.training))
    method = fit(make, teacher, range(2))
    assert modes == [True, *[False] * 10] * 2
    assert method.generator.training  # type: ignore[union-attr]


def test_statistics_are_tapped_once_a_round(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    keep = BatchNormTap._keep
    monkeypatch.setattr(BatchNormTap, "_keep", lambda self, *args: (kept.append(1), keep(self, *args))[1])
    fit(dfq(1e-3), teacher, range(3))
    assert len(kept) == 3 * sum(isinstance(m, nn.BatchNorm2d) for m in teacher.modules())


def test_a_teacher_without_batch_norm_is_refused_before_anything_runs() -> None:
    assert not faults(composed("method=dfq", "teacher.net.batch_norm=true"))
    (fault,) = faults(composed("method=dfq", "teacher=small_conv"))
    assert fault.startswith("method: Dfq reads the teacher's batch-norm statistics, but SmallConvNet")
