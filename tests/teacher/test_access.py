"""Below white a method holds something to ask: no module, no gradient, every image counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kd_lightning.errors import BudgetExceeded
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.small import SmallConvNet
from kd_lightning.teacher.access import degrade
from kd_lightning.teacher.frozen import FrozenTeacher
from kd_lightning.teacher.query import QueryTeacher, answering

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])
PROBS = LOGITS.softmax(1)


def network() -> Normalized:
    torch.manual_seed(0)
    return Normalized(SmallConvNet(widths=(4, 8), batch_norm=True), mean=[0.3], std=[0.4])


@pytest.mark.parametrize("level", ["white", "logits"])
def test_logits_pass_unchanged(level: str) -> None:
    assert degrade(LOGITS, level) is LOGITS


def test_probs_are_told_without_the_level_of_the_logits() -> None:
    told = degrade(LOGITS + 5, "probs")
    torch.testing.assert_close(told.softmax(1), PROBS)
    torch.testing.assert_close(told.exp().sum(1), torch.ones(2))


def test_decimals() -> None:
    told = degrade(LOGITS, "probs", decimals=2).exp()
    torch.testing.assert_close(told[0], torch.tensor([0.64, 0.24, 0.09, 0.03]))
    sure = degrade(torch.tensor([[20.0, 0.0, 0.0]]), "probs", decimals=2).exp()
    torch.testing.assert_close(sure, torch.tensor([[1.0, 0.005, 0.005]]))  # 0.00 means less than half of 0.01


def test_topk() -> None:
    told = degrade(LOGITS, "topk", k=2).exp()
    rest = (PROBS[0, 2] + PROBS[0, 3]) / 2
    torch.testing.assert_close(told[0], torch.stack([PROBS[0, 0], PROBS[0, 1], rest, rest]))
    torch.testing.assert_close(degrade(LOGITS, "topk", k=9).exp(), PROBS)


def test_label() -> None:
    told = degrade(LOGITS, "label", smoothing=0.1).exp()
    torch.testing.assert_close(told[1], torch.tensor([0.025, 0.025, 0.925, 0.025]))
    assert told.sum(1).tolist() == pytest.approx([1, 1])
    assert math.isfinite(degrade(LOGITS * 1e4, "label").min())


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match=r"teacher\.access='gray': expected one of white, logits"):
        degrade(LOGITS, "gray")


@pytest.mark.parametrize("access", ["logits", "probs", "topk", "label"])
def test_what_is_handed_out_holds_no_module_and_no_gradient(access: str) -> None:
    teacher = QueryTeacher(answering(network(), access), access=access)
    assert not any(isinstance(v, nn.Module | nn.Parameter | torch.Tensor) for v in vars(teacher).values())
    assert not hasattr(teacher, "parameters")
    assert not hasattr(teacher, "net")
    x = torch.rand(3, 1, 8, 8, requires_grad=True)
    answer = teacher(x)
    assert not answer.requires_grad
    assert answer.shape == (3, 10)
    assert teacher.asked == 3


def test_budget_is_never_exceeded() -> None:
    seen = []
    teacher = QueryTeacher(lambda x: seen.append(len(x)) or x, access="label", budget=5)
    teacher(torch.zeros(3, 1))
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=5 images: 3 asked, 3 more wanted.*source=queried"):
        teacher(torch.zeros(3, 1))
    assert seen == [3]
    teacher(torch.zeros(2, 1))
    assert teacher.asked == sum(seen) == 5


def test_measuring_has_a_bucket_of_its_own() -> None:
    teacher = QueryTeacher(lambda x: x, access="label", budget=0, eval_budget=4)
    assert teacher.for_evaluation(torch.zeros(4, 1)) is not None
    assert teacher.for_evaluation(torch.zeros(1, 1)) is None
    assert (teacher.asked, teacher.asked_for_evaluation) == (0, 4)


def test_frozen_teacher_owns_nothing_and_stays_as_it_is() -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    owner = nn.Module()
    owner.teacher = FrozenTeacher(net)
    owner.train()
    assert not net.training
    assert not list(owner.parameters())
    assert not owner.state_dict()
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    owner.teacher(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert next(owner.double().teacher.net.parameters()).dtype == torch.float64
