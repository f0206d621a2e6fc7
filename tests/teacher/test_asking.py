"""Asked once, at its pace, again where it did not answer, in halves where one image is at fault, and never in vain."""

from __future__ import annotations

import threading
import tracemalloc
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doors import Fake, asking, closed, pictures

from kd_lightning.core.mapped import mapped
from kd_lightning.errors import BudgetExceeded, TeacherError
from kd_lightning.teachers.answer_types import Abstained, Busy, Closed, Label, Probs, Unclear, Unfit
from kd_lightning.teachers.budget.codec import Failed
from kd_lightning.teachers.budget.rate_limit import Pace
from kd_lightning.teachers.budget.tables import Spent
from kd_lightning.teachers.remote.client import LedgerClient

ALONE = Pace(concurrency=1)


class Clock:
    """Time that passes while one sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def gate(self, random: float = 1.0) -> dict[str, Any]:
        return {"clock": lambda: self.now, "sleep": self.sleep, "random": lambda: random}


def spent(door: LedgerClient, bucket: str = "training") -> Spent:
    return door.spent()[bucket]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_every_image_is_asked_about_once_whoever_asks_and_however_often(concurrency: int, tmp_path: Path) -> None:
    client = Fake(price=0.25)
    wanted = [Label(value % 3) for value in (5, 3, 5, 4, 9, 8, 7, 3, 1, 2, 0)]
    for run in ("first", "second"):
        for _ in range(2):
            door = asking(client, tmp_path, run=run, budget=9, pace=Pace(concurrency=concurrency))
            assert door.about(pictures(5, 3, 5, 4, 9, 8, 7, 3, 1, 2, 0)) == wanted
        paid = 9 if run == "first" else 0
        assert spent(door) == Spent(used=9, paid=paid, cost=0.25 * paid)
        assert door.asked() == 9
    assert sorted(client.seen) == sorted({5, 3, 4, 9, 8, 7, 1, 2, 0})
    assert client.attempts == 3  # of at most four images


def test_images_in_a_file_stay_there_until_they_are_asked_about(tmp_path: Path) -> None:
    values = torch.arange(400).remainder(251).to(torch.uint8)
    (tmp_path / "pixels").write_bytes(values.reshape(-1, 1, 1, 1).expand(-1, 3, 64, 48).contiguous().numpy().tobytes())
    images = mapped(tmp_path / "pixels", (400, 3, 64, 48))
    teacher = closed(Fake(max_batch=8), tmp_path, budget=400)
    tracemalloc.start()
    told = teacher.about(images)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < images.nbytes / 4, "of arrays at one time"
    assert torch.equal(told.answers.argmax(1), values.long() % 3)
    again = closed(Fake(troubles=repeat(Closed("asked twice"))), tmp_path, budget=400)
    assert torch.equal(again.about(images.clone()).answers, told.answers), "they are the same images in memory"


def test_nothing_is_asked_that_does_not_fit_as_a_whole(tmp_path: Path) -> None:
    client = Fake()
    with pytest.raises(BudgetExceeded, match="0 asked, 9 more wanted"):
        asking(client, tmp_path, budget=8).about(pictures(*range(9)))
    with pytest.raises(BudgetExceeded, match=r"total_budget=8.*0 paid, 9 more"):
        asking(client, tmp_path, total_budget=8).about(pictures(*range(9)))
    assert client.attempts == 0


def test_buckets_do_not_pay_for_each_other(tmp_path: Path) -> None:
    client = Fake()
    door = asking(client, tmp_path, budget=3, eval_budget=2)
    door.about(pictures(0, 1, 2))
    door.about(pictures(2, 3), bucket="evaluation")
    with pytest.raises(BudgetExceeded, match=r"teacher\.eval_budget=2 images: 2 asked, 1 more.* Raise teacher\.e"):
        door.about(pictures(4), bucket="evaluation")
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=3 images: 3 asked"):
        door.about(pictures(3))
    assert client.answered == 4
    assert (spent(door).paid, spent(door, "evaluation").paid) == (3, 1)


def test_a_refusal_is_waited_out_and_costs_nothing(tmp_path: Path) -> None:
    time = Clock()
    client = Fake(troubles=iter([Busy("429", 7.0), Busy("429"), None]))
    times: list[float] = []
    ask = client.ask
    client.ask = lambda images: [times.append(time.now), ask(images)][1]  # type: ignore[method-assign]
    door = asking(client, tmp_path, budget=3, pace=ALONE, gate=time.gate(random=0.5))
    door.about(pictures(0, 1, 2))
    assert times == [0, 7, 8]  # as long as it said; then half of the second ceiling
    assert spent(door) == Spent(used=3, paid=3)


def test_after_a_refusal_no_other_thread_asks_either(tmp_path: Path) -> None:
    time, client = Clock(), Fake(troubles=iter([Busy("429", 30.0)]))
    door = asking(client, tmp_path, pace=ALONE, gate=time.gate())
    with pytest.raises(TeacherError):
        asking(client, tmp_path, pace=Pace(tries=1), gate=time.gate()).about(pictures(0))
    door.gate.refused(Busy("429", 30.0), 1, threading.Event())
    assert time.now == 30
    door.gate._not_before = 50
    door.about(pictures(0))
    assert time.now == 50


def test_waits_double_up_to_a_minute_and_end_after_seven_tries(tmp_path: Path) -> None:
    time, client = Clock(), Fake(troubles=repeat(Unclear("timeout")))
    door = asking(client, tmp_path, budget=100, gate=time.gate())
    with pytest.raises(TeacherError, match=r"7 times in a row: timeout.*the same command goes on"):
        door.about(pictures(0, 1))
    assert client.attempts == 7
    assert time.slept == [1, 2, 4, 8, 16, 32]
    assert spent(door) == Spent(in_doubt=14)
    assert client.answered == 14  # it had counted them all


def test_attempts_in_doubt_are_spent(tmp_path: Path) -> None:
    client = Fake(troubles=repeat(Unclear("timeout")))
    door = asking(client, tmp_path, budget=5)
    with pytest.raises(BudgetExceeded, match=r"4 asked \(4 never answered\), 2 more"):
        door.about(pictures(0, 1))
    assert client.answered == 4
    other = Fake(troubles=repeat(Unclear("timeout")))
    with pytest.raises(BudgetExceeded, match=r"total_budget=7.*6 paid, 2 more"):
        asking(other, tmp_path, run="other", total_budget=7).about(pictures(0, 1))
    assert client.answered + other.answered == 6


def test_a_closed_door_is_tried_once(tmp_path: Path) -> None:
    client = Fake(troubles=repeat(Closed("401: wrong key")))
    door = asking(client, tmp_path)
    with pytest.raises(TeacherError, match="fake cannot be queried: 401: wrong key"):
        door.about(pictures(*range(4)))
    assert client.attempts == 1
    assert spent(door) == Spent()


def test_one_poisonous_image_is_found_and_the_others_are_answered(tmp_path: Path) -> None:
    class Choosy(Fake):
        def ask(self, images: np.ndarray) -> Any:
            if 11 in images:
                self.attempts += 1
                raise Unfit("422: not an image")
            return super().ask(images)

    client = Choosy(max_batch=16)
    door = asking(client, tmp_path, budget=16)
    told = door.about(pictures(*range(16)))
    assert told == [Failed("422: not an image") if i == 11 else Label(i % 3) for i in range(16)]
    assert spent(door) == Spent(used=15, paid=15)
    assert client.attempts == 1 + 2 * 4  # a half at a time
    assert asking(client, tmp_path, run="other").about(pictures(11)) == [Failed("422: not an image")]
    assert client.attempts == 9


def test_after_failures_in_a_row_nothing_more_is_asked(tmp_path: Path) -> None:
    client = Fake(troubles=repeat(Unclear("503")))
    with pytest.raises(TeacherError, match="5 times in a row"):
        asking(client, tmp_path, pace=Pace(failures=5)).about(pictures(*range(40)))
    assert client.attempts <= 5 + 2 * Pace().concurrency  # each thread may have one under way, and begin another
    healing = Fake(troubles=chain.from_iterable(repeat([Unclear("503"), None], 20)))
    asking(healing, tmp_path, pace=Pace(concurrency=1, failures=2)).about(pictures(*range(40)))
    assert healing.answered == 80  # the unclear ones counted, too


def test_refusals_count_for_their_own_question(tmp_path: Path) -> None:
    client = Fake(troubles=chain([None], repeat(Busy("no connection"), 12)))
    asking(client, tmp_path, pace=Pace(failures=2, tries=13)).about(pictures(*range(40)))
    assert client.answered == 40


def test_a_limited_rate_is_waited_out_and_the_setting_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time, client = Clock(), Fake(troubles=repeat(Busy("429: slow down", limited=True), 9))
    asking(client, tmp_path, pace=ALONE, gate=time.gate()).about(pictures(0))
    assert time.slept == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert capsys.readouterr().err.count("429: slow down. teacher.pace.requests_per_minute=N") == 1
    hopeless = Fake(troubles=repeat(Busy("429", limited=True)))
    with pytest.raises(
        TeacherError, match=r"teacher\.pace\.longest_wait=600 seconds were refused.*requests_per_minute"
    ):
        asking(hopeless, tmp_path, pace=ALONE, gate=time.gate()).about(pictures(1))


def test_the_first_reply_is_read_before_the_second_question_is_sent(tmp_path: Path) -> None:
    client = Fake(troubles=repeat(lambda images: [Label(7)] * len(images)))
    with pytest.raises(TeacherError, match="class 7 of 3 classes"):
        asking(client, tmp_path).about(pictures(*range(40)))
    assert client.attempts == 1


def test_what_was_answered_before_the_end_is_kept(tmp_path: Path) -> None:
    client = Fake(troubles=iter([None, None, KeyboardInterrupt()]))
    door = asking(client, tmp_path, pace=ALONE)
    with pytest.raises(KeyboardInterrupt):
        door.about(pictures(*range(20)))
    assert spent(door) == Spent(used=8, paid=8, in_doubt=4)
    door.about(pictures(*range(20)))
    assert client.answered == 24


def test_an_error_in_a_thread_ends_the_others_and_is_told(tmp_path: Path) -> None:
    client = Fake(troubles=iter([ZeroDivisionError("a bug")]))
    door = asking(client, tmp_path, pace=Pace(concurrency=3))
    with pytest.raises(ZeroDivisionError):
        door.about(pictures(*range(200)))
    assert client.answered < 200
    assert client.answered == spent(door).paid + spent(door).in_doubt
    assert len(door.about(pictures(*range(200)))) == 200


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([Label(0)], "1 answers to 2 images"),
        ([Label(0), Label(3)], "class 3 of 3 classes"),
        ([Label(0), Probs((1.0, 0.0, 0.0))], "got Probs, expected Label at access label"),
    ],
)
def test_answers_that_make_no_sense_are_refused(answers: list[Any], said: str, tmp_path: Path) -> None:
    client = Fake(troubles=iter([lambda images: answers]))
    with pytest.raises(TeacherError, match=f"does not answer as it said it would: {said}"):
        asking(client, tmp_path).about(pictures(0, 1))


@pytest.mark.parametrize(
    ("values", "said"), [((1.0, 0.0), "2 values"), ((1.0, 0.5, 0.0), "sum to 1.5"), ((float("nan"), 0, 1), "finite")]
)
def test_probabilities_that_are_none(values: tuple[float, ...], said: str, tmp_path: Path) -> None:
    client = Fake(access="probs", troubles=iter([lambda images: [Probs(values)]]))
    with pytest.raises(TeacherError, match=said):
        asking(client, tmp_path).about(pictures(0))


def test_an_abstention_is_an_answer(tmp_path: Path) -> None:
    client = Fake(troubles=iter([lambda images: [Label(1), Abstained("unsure")]]))
    door = asking(client, tmp_path)
    assert door.about(pictures(0, 1)) == door.about(pictures(0, 1)) == [Label(1), Abstained("unsure")]
    assert (client.answered, spent(door).paid) == (2, 2)


def test_rates_are_kept(tmp_path: Path) -> None:
    time, client = Clock(), Fake(troubles=iter([None, Busy("429"), None, None]))
    door = asking(client, tmp_path, pace=Pace(requests_per_minute=6, concurrency=1), gate=time.gate(random=0.0))
    door.about(pictures(*range(12)))
    assert client.attempts == 4
    assert time.now == 30  # ten seconds between questions, the refused one among them
    time, client = Clock(), Fake()
    door = asking(client, tmp_path / "other", pace=Pace(images_per_minute=60, concurrency=1), gate=time.gate())
    door.about(pictures(*range(10)))
    assert time.now == 8


def test_canaries_are_asked_before_anything_new_and_only_then(tmp_path: Path) -> None:
    client = Fake(access="probs")
    asking(client, tmp_path, drift_checks=3, pace=ALONE).about(pictures(0, 1, 2, 3, 4))
    assert client.answered == 5  # there was nothing to compare with
    again = Fake(access="probs")
    door = asking(again, tmp_path, drift_checks=3)
    door.about(pictures(0, 1, 2))
    assert again.answered == 0
    door.about(pictures(6))
    door.about(pictures(7))
    assert again.seen == [0, 1, 2, 6, 7]
    assert (spent(door).used, spent(door, "canary").paid) == (7, 3)


@pytest.mark.parametrize(
    ("access", "change", "said"),
    [
        ("probs", (0.5, 0.4, 0.1), r"3 images 1 changed class"),
        ("probs", (0.8, 0.1, 0.1), None),
        ("probs", (0.77, 0.115, 0.115), None),
        ("probs", (0.6, 0.2, 0.2), r"3 images 0 changed class, and answers moved by 0\.067"),
        ("label", 2, r"3 images 2 changed class"),
    ],
)
def test_a_teacher_that_drifts_is_not_paid_any_more(access: str, change: Any, said: str | None, tmp_path: Path) -> None:
    def first(images: np.ndarray) -> Any:
        return [Label(0)] * len(images) if access == "label" else [Probs((0.8, 0.1, 0.1))] * len(images)

    def now(images: np.ndarray) -> Any:
        if access == "label":
            return [Label(0), Label(change), Label(change)]
        flipped = (0.4, 0.5, 0.1) if change[0] == 0.5 else change
        return [Probs((0.8, 0.1, 0.1)), Probs((0.8, 0.1, 0.1)), Probs(flipped)]

    asking(Fake(access=access, troubles=iter([first])), tmp_path, drift_checks=3).about(pictures(0, 1, 2))
    client = Fake(access=access, troubles=iter([now]))
    door = asking(client, tmp_path, run="next", drift_checks=3)
    if said is None:
        door.about(pictures(9))
        return
    with pytest.raises(TeacherError, match=rf"version 1, is not what it was: of {said}.*teacher\.drift_checks=0"):
        door.about(pictures(9))
    assert client.answered == 3
    assert spent(door) == Spent()
    assert len(asking(client, tmp_path, run="next").about(pictures(9))) == 1


def test_another_version_in_the_middle_of_a_run_is_refused(tmp_path: Path) -> None:
    asking(Fake(), tmp_path).about(pictures(0, 1))
    newer = Fake(version="2")
    with pytest.raises(TeacherError, match="two teachers are never mixed"):
        asking(newer, tmp_path).about(pictures(0, 1, 2))
    assert newer.attempts == 0
    assert asking(newer, tmp_path, run="other").about(pictures(0, 1)) == [Label(0), Label(1)]
    assert newer.answered == 2, "the answers of another version are not its own"
