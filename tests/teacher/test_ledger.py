"""No limit is ever exceeded by the count of whoever answers, whatever happens in between."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import FORKS, PATIENCE, wait_until
from doors import Fake, asking, asks_until_it_hangs, pays, pictures

from kd_lightning.errors import BudgetExceeded, TeacherError, UserError, VersionError
from kd_lightning.teachers.answer_types import Abstained, Described, Label, Probs, TopK
from kd_lightning.teachers.budget import ledger as ledger_module
from kd_lightning.teachers.budget.codec import Failed, keys_of, packed, unpacked
from kd_lightning.teachers.budget.ledger import Ledger
from kd_lightning.teachers.budget.tables import Claim, Spent
from kd_lightning.teachers.remote.dry_run import Planned

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
    with pytest.raises(
        BudgetExceeded, match=r"teacher\.total_budget=4 images of t for all runs together: 3 paid, 2 more"
    ):
        ledger.reserve(claim(run="new", limit=9, total_budget=4), keys(1, 4, 5))
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=2 images: 0 asked, 3 more wanted.*source\.images=N"):
        ledger.reserve(claim(run="new", limit=2), keys(1, 2, 4))
    assert ledger.spent("new")["training"] == Spent()
    # answers that others paid for count against the budget, not against the total budget
    assert len(ledger.reserve(claim(run="new", limit=3, total_budget=3), keys(1, 2, 3)).known) == 3
    with pytest.raises(BudgetExceeded, match="3 asked, 1 more"):
        ledger.reserve(claim(run="new", limit=3), keys(4))
    held = ledger.reserve(claim(limit=5), keys(4, 5))
    with pytest.raises(BudgetExceeded, match="5 asked"):
        ledger.reserve(claim(limit=5), keys(6))
    ledger.doubt(held.attempt)
    with pytest.raises(BudgetExceeded, match=r"5 asked \(2 never answered\), 1 more"):
        ledger.reserve(claim(limit=5), keys(4))
    with pytest.raises(BudgetExceeded, match=r"total_budget=5.*5 paid, 1 more"):
        ledger.reserve(claim(run="third", total_budget=5), keys(4))
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
        ledger.reserve(claim(total_budget=1), keys(2))  # the total budget forgets nothing


def test_a_file_of_another_format_or_kind(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "new.sqlite") as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    (tmp_path / "text").write_text("no database, and longer than a header" * 100)
    with pytest.raises(VersionError, match=r"format_version 9, this kd_lightning reads 1.*teacher\.ledger=FILE"):
        Ledger(tmp_path / "new.sqlite").used("run")
    with pytest.raises(TeacherError, match=r"cannot be used as a ledger.*teacher\.ledger=FILE"):
        Ledger(tmp_path / "text").used("run")


@pytest.mark.parametrize(
    ("budget", "total_budget", "troubled"), [(45, 1000, True), (1000, 60, True), (1000, 1000, False)]
)
def test_random_schedules_of_threads_and_processes(
    budget: int, total_budget: int, troubled: bool, tmp_path: Path
) -> None:
    processes = [FORKS.Process(target=pays, args=(str(tmp_path), s, budget, total_budget, troubled)) for s in range(3)]
    for process in processes:
        process.start()
    if troubled:
        wait_until(lambda: counted(tmp_path) > 10)
        os.kill(processes[0].pid or 0, signal.SIGKILL)
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL)
    answered = (tmp_path / "count").read_bytes()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.recover()
    accounts = [ledger.spent(f"run{i}")["training"] for i in range(2)]
    spent = sum(account.paid + account.in_doubt for account in accounts)
    assert len(answered) <= spent <= total_budget
    assert all(account.used + account.in_doubt <= budget for account in accounts)
    assert spent > 40, "it was asked in earnest"
    if not troubled:
        assert len(answered) == len(set(answered)) == spent, "nobody paid twice"


def counted(folder: Path) -> int:
    """Images that an client has counted in a file."""
    file = folder / "count"
    return file.stat().st_size if file.is_file() else 0


def test_a_killed_process_loses_what_was_in_flight_and_no_more(tmp_path: Path) -> None:
    process = FORKS.Process(target=asks_until_it_hangs, args=(str(tmp_path), 6, False))
    process.start()
    wait_until(lambda: counted(tmp_path) == 40)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    client = Fake(file=tmp_path / "count")
    door = asking(client, tmp_path, budget=60)
    told = door.about(pictures(*range(40)))
    assert told == asking(Fake(), tmp_path / "whole").about(pictures(*range(40)))
    spent = door.spent()["training"]
    assert spent.used == 40
    assert spent.in_doubt == 4 * 4, "questions at a time, images in each"
    assert len((tmp_path / "count").read_bytes()) <= 40 + spent.in_doubt
    assert client.answered == 16, "what was settled before is not asked again"


def test_what_a_killed_network_of_ours_left_open_was_not_spent(tmp_path: Path) -> None:
    process = FORKS.Process(target=asks_until_it_hangs, args=(str(tmp_path), 0, True))
    process.start()
    wait_until(lambda: counted(tmp_path))
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    door = asking(Fake(), tmp_path, at_home=True, budget=4)
    door.about(pictures(*range(4)))
    assert door.spent()["training"] == Spent(used=4, paid=4)


def test_somebody_elses_question_is_waited_for(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def waits(images: Any) -> Any:
        begun.set()
        go.wait(PATIENCE)
        return [Label(2)] * len(images)

    first, second = Fake(troubles=iter([waits])), Fake()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(asking(first, tmp_path).about(pictures(1, 2))))
    thread.start()
    begun.wait(PATIENCE)
    door = asking(second, tmp_path, run="other", gate={"sleep": lambda seconds: go.set() or time.sleep(0.01)})
    assert door.about(pictures(2, 3)) == [Label(2), Label(0)]
    thread.join()
    assert answers == [[Label(2), Label(2)]]
    assert (first.seen, second.seen) == ([1, 2], [3])


THOUSAND = {"access": "probs", "num_classes": 1000}


def fills_the_disk(ledger: Ledger) -> Any:
    """Answers, and lets the file grow no more."""

    def ask(images: Any) -> Any:
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger._db.execute(f"PRAGMA max_page_count={pages}")
        return [Probs((0.001,) * 1000)] * len(images)

    return ask


@pytest.mark.parametrize("same_process", [True, False])
def test_what_was_answered_while_the_disk_filled_up_is_not_asked_again(same_process: bool, tmp_path: Path) -> None:
    client = Fake(**THOUSAND)
    door = asking(client, tmp_path, budget=4)
    client.troubles = iter([fills_the_disk(door.ledger)])
    with pytest.raises(TeacherError, match=r"disk is full\): free some space .*pays for nothing twice") as stopped:
        door.about(pictures(1, 2, 3, 4))
    assert "\n" not in str(stopped.value)
    assert "teacher.ledger" not in str(stopped.value)
    with pytest.raises(TeacherError, match="disk is full"):
        door.about(pictures(1, 2, 3, 4))
    del stopped
    if same_process:
        door.ledger._db.execute("PRAGMA max_page_count=1000000")
    else:
        del door
        client.troubles = iter(())
        gc.collect()
        door = asking(client, tmp_path, budget=4)
    assert door.about(pictures(1, 2, 3, 4)) == [Probs((0.001,) * 1000)] * 4
    assert door.spent()["training"] == Spent(used=4, paid=4)
    assert client.answered == 4
    del door
    client.troubles = iter(())
    gc.collect()
    assert list((tmp_path / "ledger.sqlite.open").iterdir()) == []


def test_nothing_is_asked_where_the_answers_would_have_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Fake(**THOUSAND)
    door = asking(client, tmp_path, budget=8)
    room = [50_000]  # bytes that are left

    def pwrite(file: int, content: bytes, at: int, pwrite: Any = os.pwrite) -> int:
        if at + len(content) > room[0]:
            raise OSError(28, "No space left on device")
        return pwrite(file, content, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(TeacherError, match=r"No space left on device\): free some space"):
        door.about(pictures(1, 2, 3, 4))
    assert client.attempts == 0
    assert door.spent()["training"] == Spent()
    room[0] = 500_000
    client.troubles = iter([lambda images: [Probs((0.001,) * 1000)] * len(images)])
    assert len(door.about(pictures(1, 2, 3, 4))) == 4
    assert client.answered == 4


@pytest.mark.parametrize("first", range(0, 14, 2))
def test_whenever_the_disk_fills_up_every_image_is_paid_once(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from some commit on; then it has room again."""
    commits = [0]

    class Filling(sqlite3.Connection):
        def execute(self, *what: Any) -> Any:
            commits[0] += what[0] == "COMMIT"
            if what[0] == "COMMIT" and commits[0] > first:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return super().execute(*what)

    client = Fake(file=tmp_path / "count")
    with monkeypatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Filling))
        for _ in range(3):
            with pytest.raises(TeacherError, match="free some space"):
                asking(client, tmp_path, budget=20).about(pictures(*range(20)))
            gc.collect()
    door = asking(client, tmp_path, budget=20)
    door.about(pictures(*range(20)))
    assert client.answered == len(set(client.seen)) == 20
    assert door.spent()["training"] == Spent(used=20, paid=20)


def _held(file: Path) -> Any:
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    return other


def _sql(*statements: str) -> Any:
    def damage(file: Path) -> None:
        with sqlite3.connect(file) as db:
            for statement in statements:
                db.execute(statement)
        db.close()

    return damage


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _no_folder(file: Path) -> None:
    shutil.rmtree(file.parent / "l.sqlite.open")
    (file.parent / "l.sqlite.open").write_text("")


DAMAGES = {
    "locked": _held,
    "cut off": _cut,
    "a folder": _folder,
    "no place for locks": _no_folder,
    "no table": _sql("DROP TABLE used"),
    "no teacher": _sql("DELETE FROM teachers"),
    "numbers that are none": _sql("UPDATE accounts SET used = 'x', pending = 'y'"),
    "attempts twice": _sql("UPDATE attempts SET state = 'paid'"),
    "a shape that is none": _sql("UPDATE canaries SET shape = '1,a'"),
    "pixels that are missing": _sql("UPDATE canaries SET image = x''"),
    **{
        f"told {told}": _sql(f"UPDATE answers SET told = {told}")
        for told in ("x''", "x'6c'", "x'6c0102'", "x'6cffffffffffffffff'", "x'7a00'", "'text'", "7", "x'61ff'", "x'70'")
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_befalls_the_file_every_call_ends_in_one_line(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "WAIT", 0.01)
    file, teacher = tmp_path / "l.sqlite", Fake().described
    own = claim(fit="fit", teacher=teacher)
    images = pictures(1, 2)
    known = keys_of(teacher, images)

    def fresh() -> tuple[Ledger, int, int]:
        ledger = Ledger(file, durable=False)
        ledger.begin("run", teacher)
        ledger.settle(own, ledger.reserve(own, known).attempt or 0, dict.fromkeys(known, Label(1)))
        ledger.keep_drift_checks(teacher, dict(zip(known, images, strict=True)), 2)
        return ledger, ledger.reserve_again(own, 2), ledger.reserve_again(own, 3)

    calls: dict[str, Any] = {
        "begin": lambda it, *_: it.begin("run", teacher),
        "recall": lambda it, *_: it.recall(own, known),
        "reserve": lambda it, *_: it.reserve(own, [*known, *keys_of(teacher, pictures(3))]),
        "reserve_again": lambda it, *_: it.reserve_again(own, 1),
        "settle": lambda it, one, _: it.settle(own, one, {b"k": Label(1)}),
        "release": lambda it, one, _: it.release(one),
        "doubt": lambda it, one, _: it.doubt(one),
        "fail": lambda it, one, _: it.fail(one, b"k", Failed("no")),
        "adopt": lambda it, *_: it.adopt(own, 2),
        "used": lambda it, *_: it.used("run"),
        "spent": lambda it, *_: it.spent("run"),
        "keep_drift_checks": lambda it, *_: it.keep_drift_checks(teacher, dict(zip(known, images, strict=True)), 9),
        "drift_checks": lambda it, *_: it.drift_checks(teacher, 2),
        "recover": lambda it, *_: it.recover(),
        "opened anew": lambda *_: Ledger(file).recall(own, known),
        "planned": lambda *_: Planned(asking(Fake(), tmp_path), set()).about(images),
    }
    said = []
    for call in calls.values():
        for old in tmp_path.glob("l.sqlite*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        ledger, one, two = fresh()
        if call is calls["planned"]:
            (tmp_path / "ledger.sqlite").unlink(missing_ok=True)
            file.with_name("ledger.sqlite").symlink_to(file)
        ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if damage not in ("locked", "numbers that are none", "attempts twice", "told x''"):
            ledger = Ledger(file)  # a process that comes later
        holding = DAMAGES[damage](file)
        try:
            call(ledger, one, two)
        except UserError as error:
            said.append(str(error))
        finally:
            if holding is not None:
                holding.close()
    assert said
    assert all(line.startswith(f"{file.parent}/l") and "\n" not in line for line in said)
    if damage == "locked":
        assert all("another process holds it: end that one" in line for line in said)
        assert len(said) >= 14


def test_a_place_that_cannot_be_a_ledgers_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TeacherError, match=r"cannot be used as a ledger \(.*teacher\.ledger=FILE"):
        Ledger(tmp_path / "file" / "l.sqlite").used("run")
