"""Below white a method holds something to ask: no module, no gradient, every image counted."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from doors import Fake, Tells, closed, degrade
from torch import Tensor, nn

from kd_lightning.core.tasks import Classification
from kd_lightning.errors import BudgetExceeded, TeacherError
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.teachers.access import told, usable
from kd_lightning.teachers.answer_types import Abstained, Described, Label, TopK
from kd_lightning.teachers.black_box import QueryTeacher, eight_bits, to_bytes
from kd_lightning.teachers.remote.local import LocalAsker
from kd_lightning.teachers.white_box import FrozenTeacher

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])
PROBS = LOGITS.softmax(1)


def network() -> Normalized:
    torch.manual_seed(0)
    return Normalized(SmallConvNet(widths=(4, 8), batch_norm=True), mean=[0.3], std=[0.4])


def test_logits_pass_unchanged() -> None:
    assert torch.equal(degrade(LOGITS * 3.3, "logits"), LOGITS * 3.3)


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


def test_a_bare_label_is_one_hot_where_nothing_is_smoothed() -> None:
    assert degrade(LOGITS, "label", smoothing=0.0).softmax(1)[1].tolist() == pytest.approx([0, 0, 1, 0], abs=1e-9)


def test_topk_of_any_length_spreads_what_was_not_told() -> None:
    described = Described("api", "1", "topk", 4, k=3)
    probs = usable([TopK((2,), (0.7,)), TopK((3, 0, 1), (0.5, 0.3, 0.1))], described).exp()
    torch.testing.assert_close(probs, torch.tensor([[0.1, 0.1, 0.7, 0.1], [0.3, 0.1, 0.1, 0.5]]))


def test_a_network_abstains_where_it_is_unsure() -> None:
    answers = told(LOGITS, "label", abstain_below=0.7)
    assert answers == [Abstained("not sure enough"), Label(2)]
    assert told(LOGITS, "label", abstain_below=0.6) == [Label(0), Label(2)]


def reachable(start: Any) -> list[Any]:
    """Everything that attributes, closures and containers lead to from here, modules and classes left out."""
    seen: dict[int, Any] = {}
    ahead = [start]
    while ahead:
        thing = ahead.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, types.FunctionType):  # its globals are those of a module
            ahead += [*(thing.__closure__ or ()), *(thing.__defaults__ or ())]
        else:
            ahead += gc.get_referents(thing)
    return list(seen.values())


def at_home(access: Any, folder: Path, **terms: Any) -> QueryTeacher:
    return closed(LocalAsker(network(), Described("net", "1", access, 10)), folder, at_home=True, **terms)


@pytest.mark.parametrize("access", ["logits", "probs", "topk", "label"])
def test_nothing_leads_from_what_is_handed_out_to_the_network(access: str, tmp_path: Path) -> None:
    teacher = at_home(access, tmp_path)
    x = torch.rand(3, 1, 8, 8, requires_grad=True)
    answer = teacher(x)
    assert not answer.requires_grad
    assert answer.shape == (3, 10)
    assert teacher.asked == 3
    assert not any(isinstance(v, nn.Module | nn.Parameter | torch.Tensor) for v in vars(teacher).values())
    assert not hasattr(teacher, "parameters")
    assert not hasattr(teacher, "net")
    found = reachable(teacher)
    assert any(isinstance(thing, LocalAsker) for thing in found), "the walk went through the door"
    assert not [thing for thing in found if isinstance(thing, nn.Module | nn.Parameter | torch.Tensor)]
    assert [thing for thing in reachable(FrozenTeacher(network())) if isinstance(thing, nn.Parameter)]


def test_no_method_holds_a_network_that_only_answers(tmp_path: Path) -> None:
    teacher, student = at_home("probs", tmp_path), network()
    method = Distill(student=student, teacher=teacher, task=Classification(10), optimizer=torch.optim.SGD)
    assert {id(p) for p in method.parameters()} == {id(p) for p in student.parameters()}
    assert all(key.startswith("student.") for key in method.state_dict())
    assert not [thing for thing in reachable(vars(method)["teacher"]) if isinstance(thing, nn.Module)]


LEFT_OPEN = """
import sys, types
import numpy as np
from torch import nn
from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.remote.local import LocalAsker

sys.modules["kept"] = kept = types.ModuleType("kept")  # until the very end
net = lambda: nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(100)))
kept.askers = [LocalAsker(net(), Described("net", "1", "probs", 64)) for _ in range(20)]
print(len([client.ask(np.zeros((1, 8, 8, 1), np.uint8)) for client in kept.askers]))
"""


@pytest.mark.slow
def test_a_process_may_end_while_teachers_are_open() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr


def test_an_error_of_the_network_says_what_it_was_and_leads_nowhere(tmp_path: Path) -> None:
    teacher = at_home("probs", tmp_path)
    with pytest.raises(RuntimeError, match="network failed: RuntimeError") as caught:
        teacher(torch.rand(2, 3, 8, 8))
    assert not [thing for thing in reachable(caught.value.__context__) if isinstance(thing, nn.Module)]
    assert teacher(torch.rand(2, 1, 8, 8)).shape == (2, 10), "the next question is answered"


def test_answers_are_those_of_the_network(tmp_path: Path) -> None:
    x = eight_bits(torch.rand(700, 1, 8, 8))
    assert torch.allclose(at_home("logits", tmp_path)(x), network().eval()(x), atol=1e-6)


def test_the_pixels_asked_about_are_those_that_are_shown(tmp_path: Path) -> None:
    exact = torch.arange(256).float().view(-1, 1, 1, 1) / 255
    assert torch.equal(eight_bits(exact), exact)
    assert to_bytes(exact).ravel().tolist() == list(range(256))
    x = torch.rand(50, 2, 3, 4) * 1.2 - 0.1
    shown = eight_bits(x)
    assert (shown - x.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(torch.from_numpy(to_bytes(x)).permute(0, 3, 1, 2).float() / 255, shown)
    client = Tells(lambda x: x.flatten(1)[:, :3])
    assert torch.equal(closed(client, tmp_path)(x), shown.flatten(1)[:, :3])


def different(*values: int) -> Tensor:
    return torch.tensor(values).float().view(-1, 1, 1, 1) / 255


def test_budget_is_never_exceeded(tmp_path: Path) -> None:
    client = Fake()
    teacher = closed(client, tmp_path, budget=5)
    teacher(different(1, 2, 3))
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=5 images: 6 wanted"):
        teacher.require(6)
    teacher.require(5)
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=5 images: 3 asked, 3 more wanted.*source=queried"):
        teacher(different(4, 5, 6))
    assert client.answered == 3
    teacher(different(1, 2, 3))
    teacher(different(4, 5))
    assert teacher.asked == client.answered == 5


def test_measuring_has_a_bucket_of_its_own(tmp_path: Path) -> None:
    client = Fake()
    teacher = closed(client, tmp_path, budget=0, eval_budget=4)
    images = torch.arange(5, dtype=torch.uint8).view(-1, 1, 1, 1)
    told = teacher.for_evaluation(images[:4])
    assert told is not None
    assert told.answers.argmax(1).tolist() == [0, 1, 2, 0]
    assert teacher.for_evaluation(images) is None
    assert (teacher.asked, client.answered) == (0, 4)


def test_a_batch_cannot_do_without_an_answer(tmp_path: Path) -> None:
    client = Fake(troubles=iter([lambda images: [Label(1), Abstained()]]))
    teacher = closed(client, tmp_path)
    with pytest.raises(TeacherError, match=r"abstained on 1 images.*source=queried"):
        teacher(different(1, 2))
    told = teacher.about(torch.tensor([2, 1, 3], dtype=torch.uint8).view(-1, 1, 1, 1))
    assert (told.positions.tolist(), told.abstained, told.failed) == ([1, 2], 1, 0)


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
