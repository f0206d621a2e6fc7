"""DisGUIDE's losses in closed form, its questions counted to the last one, and nothing paid twice after a kill."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import disguide
from conftest import composition
from doors import Tells, closed
from test_plan import planned
from test_resume import in_a_child
from torch import Tensor
from toy import CLASSES, network, trainer

from kd_lightning.core.tasks import Classification
from kd_lightning.data.module import Images
from kd_lightning.data.structured_images import priors
from kd_lightning.errors import BudgetExceeded, ConfigError
from kd_lightning.losses.disagreement import centred, disagreement, imbalance, told_loss
from kd_lightning.losses.response import kl
from kd_lightning.methods.black_box.disguide import Disguide
from kd_lightning.teachers.answer_types import Abstained

B = 64


def sums(x: Tensor) -> Tensor:
    return torch.stack(
        [x[:, 0, :4].mean((1, 2)), x[:, 0, 4:].mean((1, 2)), x[:, 0, :, :4].mean((1, 2)), x[:, 0, 0, 0]], 1
    )


def asked(teacher: Any, rounds: int, **settings: Any) -> Disguide:
    torch.manual_seed(0)
    make = disguide(2e-2, **{"questions": 3 * B, "replay": 1} | settings)
    method: Disguide = make(student=network((8, 16)), teacher=teacher, task=Classification(CLASSES))
    method.train()
    trainer(1).fit(method, Images(range(rounds), None))
    return method


class Watched(Tells):
    """Remembers the images that it was asked about."""

    def __init__(self) -> None:
        super().__init__(sums, classes=CLASSES)
        self.images: list[Any] = []

    def ask(self, images: Any) -> Any:
        self.images.append(images)
        return super().ask(images)


def test_disagreement_in_closed_form() -> None:
    sure = torch.tensor([[40.0, -40.0]])
    assert disagreement(sure, sure.flip(1)).item() == pytest.approx(math.sqrt(0.5))
    assert disagreement(sure, sure).item() == 0
    one, other = torch.randn(6, 4), torch.randn(6, 4)
    both = torch.stack([one, other]).softmax(2)
    torch.testing.assert_close(disagreement(one, other), both.std(0).mean())
    torch.testing.assert_close(disagreement(one, other, variant="dual_students"), (one - other).abs().mean())


def test_imbalance_is_least_where_all_classes_are_as_frequent() -> None:
    assert imbalance(torch.full((3, 5), 0.2)).item() == pytest.approx(-math.log(5), abs=1e-4)
    assert imbalance(torch.eye(5)).item() == pytest.approx(-math.log(5), abs=1e-4)
    assert imbalance(torch.eye(5)[:1]).item() == pytest.approx(0, abs=1e-3)


def test_what_was_told_is_imitated_by_its_access() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]])
    expected = torch.tensor([[0.46210, -0.23105, -0.23105]])
    torch.testing.assert_close(centred(p.log() + 3), expected, atol=1e-5, rtol=0)
    student, t = torch.randn(7, 4), torch.randn(7, 4)
    torch.testing.assert_close(told_loss(student, t, access="probs"), kl(student, t))
    torch.testing.assert_close(told_loss(student, t, access="probs", loss="l1"), (student - centred(t)).abs().mean())
    label = torch.nn.functional.cross_entropy(student, t.argmax(1))
    for loss in ("kl", "l1"):
        torch.testing.assert_close(told_loss(student, t, access="label", loss=loss), label)


def test_one_question_an_image_no_more_than_were_reserved_and_all_of_them_kept(tmp_path: Path) -> None:
    server = Watched()
    teacher = closed(server, tmp_path, budget=3 * B - 10)
    method = asked(teacher, 5, questions=3 * B - 10)
    assert [len(images) for images in server.images] == [B, B, B - 10]
    assert teacher.asked == method.images_made == len(method.images) == len(method.answers) == 3 * B - 10
    seen = torch.cat([torch.from_numpy(images) for images in server.images]).permute(0, 3, 1, 2)
    assert torch.equal(method.images.rows, seen)
    torch.testing.assert_close(method.answers.rows, sums(seen.float() / 255))
    counts = method.findings()["class_counts"]["images"]
    assert counts["each"] == sums(seen.float() / 255).argmax(1).bincount(minlength=CLASSES).tolist()
    assert counts["rarest"] == min(counts["each"])
    assert counts["commonest"] == max(counts["each"])


def test_a_budget_too_small_for_the_whole_fit_ends_it_before_the_first_question(tmp_path: Path) -> None:
    server = Watched()
    with pytest.raises(BudgetExceeded, match=rf"teacher\.budget={3 * B - 1} images: {3 * B} wanted"):
        asked(closed(server, tmp_path, budget=3 * B - 1), 1)
    assert not server.images


def test_the_students_see_the_images_that_were_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imitated: list[Tensor] = []
    imitate = Disguide.imitate
    monkeypatch.setattr(Disguide, "imitate", lambda self, x, t: imitated.append(x) or imitate(self, x, t))
    server = Watched()
    method = asked(closed(server, tmp_path), 2)
    assert len(imitated) == 4
    rows = {image.numpy().tobytes() for image in method.images.rows}
    for x in imitated:
        assert torch.equal((x * 255).round() / 255, x)
        assert {image.numpy().tobytes() for image in (x * 255).round().byte()} <= rows


def test_unanswered_images_are_left_out_and_count_as_asked(tmp_path: Path) -> None:
    class Shy(Watched):
        def ask(self, images: Any) -> Any:
            return [Abstained() if i % 4 == 0 else answer for i, answer in enumerate(super().ask(images))]

    method = asked(closed(Shy(), tmp_path), 3)
    assert method.left == 0
    assert len(method.images) == len(method.answers) == 3 * B * 3 // 4
    torch.testing.assert_close(method.answers.rows, sums(method.images.rows.float() / 255))


def test_the_generator_finds_what_the_students_disagree_on_without_a_question(tmp_path: Path) -> None:
    def apart(lr: float) -> float:
        server = Watched()
        torch.manual_seed(0)
        make = disguide(lr, questions=B, g_steps=60, diversity=0.0)
        method = make(student=network((8, 16)), teacher=closed(server, tmp_path), task=Classification(CLASSES))
        method.imitate = lambda x, t: torch.zeros(())  # the students stay as they are
        trainer(1).fit(method.train(), Images(range(1), None))
        assert sum(map(len, server.images)) <= B
        with torch.no_grad():
            x = method.draw(256)
            return float(disagreement(method.student.eval()(x), method.twin.eval()(x)))

    still, moved = apart(0.0), apart(2e-2)
    assert moved > 1.5 * still


def test_the_first_questions_may_be_about_structured_noise_and_are_paid_once(tmp_path: Path) -> None:
    server = Watched()
    method = asked(closed(server, tmp_path), 3, start=70)
    made = priors(70, (1, 8, 8), mean=[0.5], std=[0.3])
    assert torch.equal(method.images.rows[:70], made)
    assert sum(map(len, server.images)) == len(method.images) == 3 * B
    again = asked(closed(server, tmp_path), 3, start=70)  # another fit of the same seeds
    assert sum(map(len, server.images)) == 3 * B
    assert torch.equal(method.images.rows, again.images.rows)
    with pytest.raises(ConfigError, match=r"method\.start=9: expected from 0 to method\.questions=8"):
        disguide(0.0, questions=8, start=9)(student=network((8,)), teacher=None, task=Classification(CLASSES))


def test_a_plan_asks_as_often_as_the_run(store: Path, teacher_file: Path) -> None:
    few = ("method.questions=48", "method.start=16", "method.batch_size=16", "method.latent=8", "source.rounds=40")
    overrides = ("method=disguide", *few, "method.generator.ngf=4", "teacher.access=label")
    steps = {step.name: step.images for step in planned(*overrides, f"teacher.weights={teacher_file}").steps}
    assert steps["student"] == 48


def test_its_variant_and_its_access() -> None:
    method = composition("method=dual_students", "teacher.access=label").method
    assert (method["asked"], method["replay"], method["variant"]) == (5, 0, "dual_students")


@pytest.mark.slow
def test_a_killed_fit_makes_the_same_images_and_pays_nothing_twice(tmp_path: Path, teacher_file: Path) -> None:
    overrides = ("method=disguide", "method.questions=80", "method.start=16", "method.replay=1", "method.batch_size=16",
                 "method.latent=8", "method.generator.ngf=4", "source.rounds=4", "teacher.access=probs",
                 "teacher.budget=80", "teacher.total_budget=80", f"teacher.weights={teacher_file}")  # fmt: skip
    where = tmp_path / "run"
    # after the third round's questions were paid for, and before they are in a checkpoint
    assert in_a_child(where, tmp_path / "store", overrides, "student", "round 2") == -signal.SIGKILL
    assert in_a_child(where, tmp_path / "store", overrides, "student", "never") == 0
    cost = json.loads((where / "result.json").read_text())["cost"]
    assert cost["asking"]["training"]["used"] == cost["asking"]["training"]["paid"] == 80
