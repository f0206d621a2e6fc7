"""No limit is ever exceeded by the count of whoever answers, whatever happens in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import FORKS
from doors import Fake, asking, asks_slowly, pays, pictures

from kd_lightning.errors import BudgetExceeded, TeacherError, VersionError
from kd_lightning.teachers.answer_types import Abstained, Described, Label, Probs, TopK
from kd_lightning.teachers.budget.codec import Failed, keys_of, packed, unpacked
from kd_lightning.teachers.budget.ledger import Ledger
from kd_lightning.teachers.budget.tables import Claim, Spent

TEACHER = Described("t", "1", "label", 3, price=0.5)


def claim(**changes: Any) -> Claim:
    return Claim(**{"run": "run", "bucket": "training", "teacher": TEACHER, **changes})


def keys(*values: int) -> list[bytes]:
    return keys_of(TEACHER, pictures(*values))


@pytest.mark.parametrize(
    "answer",
    [Probs((0.1, 1 / 3, -2.5)), TopK((7, 2), (0.8, 0.1)), Label(9), Abstained("too blurred é"), Failed("HTTP 422")],
)
def test_answers_come_back_to_the_bit(answer: Any) -> None:
    assert unpacked(packed(answer)) == answer


def test_a_key_is_who_how_and_which_pixels() -> None:
    images = pictures(1, 2, 1)
    one, two, again = keys_of(TEACHER, images)
    assert one == again != two
    others = [
        Described("u", "1", "label", 3),
        Described("t", "2", "label", 3),
        Described("t", "1", "probs", 3),
        Described("t", "1", "probs", 3, decimals=2),
        Described("t", "1", "topk", 3, k=1),
        Described("t", "1", "topk", 3, k=2),
    ]
    assert len({keys_of(other, images)[0] for other in others} | {one}) == 7
    assert keys_of(Described("t", "1", "label", 9, k=1, price=3.0, max_batch=1), images)[0] == one
    assert keys_of(TEACHER, images.reshape(1, 1, 3, 1)) != keys_of(TEACHER, images.reshape(1, 3, 1, 1))


def test_reserve_settle_and_find_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    first = ledger.reserve(claim(fit="fit"), keys(1, 2))
    assert first.mine == keys(1, 2)
    other = ledger.reserve(claim(run="other"), keys(2, 3))
    assert (other.mine, other.elsewhere) == (keys(3), keys(2))
    ledger.settle(claim(fit="fit"), first.attempt, dict(zip(keys(1, 2), [Label(1), Label(2)], strict=True)))
    ledger.release(other.attempt)
    del ledger  # the process ends
    again = Ledger(tmp_path / "l.sqlite")
    found = again.reserve(claim(run="other"), keys(1, 2, 3))
    assert found.known == dict(zip(keys(1, 2), [Label(1), Label(2)], strict=True))
    assert found.mine == keys(3)
    assert again.spent("run")["training"] == Spent(used=2, paid=2, cost=1.0)
    assert again.spent("other")["training"] == Spent(used=2)
    assert again.used("fit") == 2


def test_both_limits_are_checked_together_and_nothing_changes_where_one_fails(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.settle(claim(), ledger.reserve(claim(), keys(1, 2, 3)).attempt, dict.fromkeys(keys(1, 2, 3), Label(0)))
    with pytest.raises(BudgetExceeded, match=r"teacher\.purse=4 images of t for all runs together: 3 paid, 2 more"):
        ledger.reserve(claim(run="new", limit=9, purse=4), keys(1, 4, 5))
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=2 images: 0 asked, 3 more wanted.*source\.images=N"):
        ledger.reserve(claim(run="new", limit=2), keys(1, 2, 4))
    assert ledger.spent("new")["training"] == Spent()
    # answers that others paid for count against the budget, not against the purse
    assert len(ledger.reserve(claim(run="new", limit=3, purse=3), keys(1, 2, 3)).known) == 3
    with pytest.raises(BudgetExceeded, match="3 asked, 1 more"):
        ledger.reserve(claim(run="new", limit=3), keys(4))
    held = ledger.reserve(claim(limit=5), keys(4, 5))
    with pytest.raises(BudgetExceeded, match="5 asked"):
        ledger.reserve(claim(limit=5), keys(6))
    ledger.doubt(held.attempt)
    with pytest.raises(BudgetExceeded, match=r"5 asked \(2 never answered\), 1 more"):
        ledger.reserve(claim(limit=5), keys(4))
    with pytest.raises(BudgetExceeded, match=r"purse=5.*5 paid, 1 more"):
        ledger.reserve(claim(run="third", purse=5), keys(4))
    assert ledger.recall(claim(limit=5), keys(1, 2)).keys() == set(keys(1, 2))


def test_a_fit_taken_over_by_another_run_counts_there_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    making = claim(fit="fit")
    ledger.settle(making, ledger.reserve(making, keys(1, 2, 3)).attempt, dict.fromkeys(keys(1, 2, 3), Label(0)))
    assert ledger.adopt(making, 3) == 3
    assert ledger.used("run") == 3
    with pytest.raises(BudgetExceeded, match="budget=2"):
        ledger.adopt(claim(run="other", fit="fit", limit=2), 3)
    other = claim(run="other", fit="fit", limit=5)
    assert (ledger.adopt(other, 3), ledger.adopt(other, 3), ledger.used("other")) == (3, 3, 3)
    lost = claim(run="other", fit="made with another ledger", limit=5)
    assert (ledger.adopt(lost, 2), ledger.adopt(lost, 2), ledger.used("other")) == (2, 2, 5)
    with pytest.raises(BudgetExceeded, match="5 asked"):
        ledger.reserve(other, keys(9))


def test_two_versions_are_never_mixed_in_one_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.begin("run", TEACHER)
    ledger.settle(claim(), ledger.reserve(claim(), keys(1)).attempt, {keys(1)[0]: Label(0)})
    newer = Described("t", "2", "label", 3)
    with pytest.raises(TeacherError, match=r"is t, version 2, but this run has used answers of t, version 1"):
        ledger.begin("run", newer)
    ledger.begin("another", newer)
    ledger.begin("run", newer, anew=True)
    assert ledger.spent("run")["training"] == Spent()
    with pytest.raises(BudgetExceeded, match="1 paid"):
        ledger.reserve(claim(purse=1), keys(2))  # the purse forgets nothing


def test_a_file_of_another_format_or_kind(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "new.sqlite") as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    (tmp_path / "text").write_text("no database, and longer than a header" * 100)
    with pytest.raises(VersionError, match=r"format_version 9, this kd_lightning reads 1.*teacher\.ledger=FILE"):
        Ledger(tmp_path / "new.sqlite").used("run")
    with pytest.raises(TeacherError, match=r"cannot be used as a ledger.*teacher\.ledger=FILE"):
        Ledger(tmp_path / "text").used("run")


@pytest.mark.parametrize(("budget", "purse", "troubled"), [(45, 1000, True), (1000, 60, True), (1000, 1000, False)])
def test_random_schedules_of_threads_and_processes(budget: int, purse: int, troubled: bool, tmp_path: Path) -> None:
    processes = [FORKS.Process(target=pays, args=(str(tmp_path), s, budget, purse, troubled)) for s in range(3)]
    for process in processes:
        process.start()
    if troubled:
        while not (tmp_path / "count").is_file():
            time.sleep(0.005)
        time.sleep(0.1)
        os.kill(processes[0].pid or 0, signal.SIGKILL)
    for process in processes:
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
    answered = (tmp_path / "count").read_bytes()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.recover()
    accounts = [ledger.spent(f"run{i}")["training"] for i in range(2)]
    spent = sum(account.paid + account.in_doubt for account in accounts)
    assert len(answered) <= spent <= purse
    assert all(account.used + account.in_doubt <= budget for account in accounts)
    assert spent > 40, "it was asked in earnest"
    if not troubled:
        assert len(answered) == len(set(answered)) == spent, "nobody paid twice"


def test_a_killed_process_loses_what_was_in_flight_and_no_more(tmp_path: Path) -> None:
    process = FORKS.Process(target=asks_slowly, args=(str(tmp_path), 0.15, False))
    process.start()
    while not (tmp_path / "count").is_file() or (tmp_path / "count").stat().st_size < 20:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    asker = Fake(file=tmp_path / "count")
    door = asking(asker, tmp_path, budget=60)
    told = door.about(pictures(*range(40)))
    assert told == asking(Fake(), tmp_path / "whole").about(pictures(*range(40)))
    spent = door.spent()["training"]
    assert spent.used == 40
    flying = 4 * 4  # questions at a time, images in each
    assert 0 < spent.in_doubt <= flying
    assert len((tmp_path / "count").read_bytes()) <= 40 + spent.in_doubt
    assert 40 - asker.answered > 0, "what was settled before is not asked again"


def test_what_a_killed_network_of_ours_left_open_was_not_spent(tmp_path: Path) -> None:
    process = FORKS.Process(target=asks_slowly, args=(str(tmp_path), 100, True))
    process.start()
    while not (tmp_path / "count").is_file():
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    door = asking(Fake(), tmp_path, at_home=True, budget=4)
    door.about(pictures(*range(4)))
    assert door.spent()["training"] == Spent(used=4, paid=4)


def test_somebody_elses_question_is_waited_for(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def waits(images: Any) -> Any:
        begun.set()
        go.wait(10)
        return [Label(2)] * len(images)

    first, second = Fake(troubles=iter([waits])), Fake()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(asking(first, tmp_path).about(pictures(1, 2))))
    thread.start()
    begun.wait(10)
    door = asking(second, tmp_path, run="other", gate={"sleep": lambda seconds: go.set() or time.sleep(0.01)})
    assert door.about(pictures(2, 3)) == [Label(2), Label(0)]
    thread.join()
    assert answers == [[Label(2), Label(2)]]
    assert (first.seen, second.seen) == ([1, 2], [3])
