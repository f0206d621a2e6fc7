"""What comes of one attempt over HTTP: every status, every break, every invalid answer."""

from __future__ import annotations

import json
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import httpx
import numpy as np
import pytest
from hydra.utils import instantiate
from loopback import TEACHER, images, label, probs, topk, toy

from kd_lightning.cli.serve.limits import Limits
from kd_lightning.config import resolvers
from kd_lightning.config.overrides import read
from kd_lightning.errors import ConfigError, TeacherError, UserError
from kd_lightning.teachers.answer_types import (
    Abstained,
    Answer,
    Busy,
    Closed,
    Described,
    Label,
    Probs,
    TopK,
    Unanswered,
    Unclear,
    Unfit,
)
from kd_lightning.teachers.remote import protocol as wire
from kd_lightning.teachers.remote.http import HttpTeacher

Reply = Callable[[httpx.Request], httpx.Response]


def good(request: httpx.Request, teacher: Described = TEACHER) -> httpx.Response:
    if request.url.path.endswith("/describe"):
        return httpx.Response(200, json=wire.description(teacher))
    shape = wire.shape_in(request.headers["Content-Type"])
    asked = np.frombuffer(request.content, np.uint8).reshape(shape)
    return httpx.Response(200, content=wire.told(probs(asked), teacher))


def asking(reply: Reply | httpx.Response, **settings: Any) -> HttpTeacher:
    """A teacher that replies so to questions, and well to what comes before them."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/describe"):
            return good(request)
        return reply if isinstance(reply, httpx.Response) else reply(request)

    client = HttpTeacher("http://teacher.test", **settings)
    client._transport = httpx.MockTransport(respond)
    return client


def attempt(reply: Reply | httpx.Response, asked: np.ndarray | None = None, **settings: Any) -> Unanswered:
    with pytest.raises(Unanswered) as found:
        asking(reply, **settings).ask(images(1, 2) if asked is None else asked)
    return found.value


def refusing(status: int, counted: bool | None = None, reason: str = "because", **headers: str) -> httpx.Response:
    error = {"code": "x", "reason": reason} | ({} if counted is None else {"counted": counted})
    return httpx.Response(status, json={"error": error}, headers={k.replace("_", "-"): v for k, v in headers.items()})


STATUS = {
    Busy: [408, 425, 429],
    Unfit: [400, 413, 415, 422],
    Closed: [301, 307, 401, 402, 403, 404, 405, 407, 409, 410, 412, 426, 451],
    Unclear: [201, 204, 206, 500, 501, 502, 503, 504, 520, 599],
}


@pytest.mark.parametrize(("kind", "status"), [(kind, status) for kind, each in STATUS.items() for status in each])
def test_every_status_means_one_thing(kind: type, status: int) -> None:
    found = attempt(refusing(status))
    assert type(found) is kind
    assert str(found) in (f"{status}: because", f"the teacher at http://teacher.test has changed: {status}: because")


@pytest.mark.parametrize("status", [500, 503])
def test_a_failure_that_says_it_was_not_counted_is_no_more_than_busy(status: int) -> None:
    assert type(attempt(refusing(status, counted=False, Retry_After="3"))) is Busy
    assert type(attempt(refusing(status, counted=True))) is Unclear
    assert type(attempt(httpx.Response(status, text="gateway", headers={"Retry-After": "3"}))) is Unclear


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("17", 17.0),
        ("2.5", 2.5),
        ("-3", None),
        ("soon", None),
        ("", None),
        ("1e9", None),
        ("nan", None),
        ("99999999999999999999", None),
        (formatdate(1_700_000_060, usegmt=True), 60.0),
        (formatdate(1_600_000_000, usegmt=True), 0.0),
        ("Wed, 99 Nov 2023 22:13:20 GMT", None),
    ],
)
def test_when_to_come_again(text: str, seconds: float | None) -> None:
    date = formatdate(1_700_000_000, usegmt=True)  # by the other side's clock
    for status in (429, 503):
        found = attempt(refusing(status, Retry_After=text, Date=date))
        assert isinstance(found, Busy | Unclear)
        assert found.retry_after == seconds


def test_a_date_without_the_other_sides_clock_is_read_by_ours() -> None:
    found = attempt(refusing(429, Retry_After=formatdate(time.time() + 100, usegmt=True)))
    assert isinstance(found, Busy)
    assert found.retry_after == pytest.approx(100, abs=60)


@pytest.mark.parametrize(
    "error",
    [
        {"code": "insufficient_quota", "message": "You exceeded your current quota"},
        {"code": "no_credit", "reason": "your credit is used up"},
        {"message": "Billing hard limit has been reached"},
    ],
)
def test_no_credit_is_not_a_matter_of_waiting(error: dict[str, str]) -> None:
    assert type(attempt(httpx.Response(429, json={"error": error}, headers={"Retry-After": "1"}))) is Closed
    assert type(attempt(httpx.Response(429, json={"error": {"reason": "at most 60 queries a minute"}}))) is Busy


BROKEN = {
    Busy: [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError],
    Unclear: [
        *(httpx.ReadTimeout, httpx.WriteTimeout, httpx.ReadError, httpx.WriteError, httpx.CloseError),
        *(httpx.RemoteProtocolError, httpx.DecodingError),
    ],
    Closed: [httpx.LocalProtocolError, httpx.UnsupportedProtocol],
}


@pytest.mark.parametrize(("kind", "error"), [(kind, error) for kind, each in BROKEN.items() for error in each])
def test_every_break_means_one_thing(kind: type, error: type[Exception]) -> None:
    def breaks(request: httpx.Request) -> httpx.Response:
        raise error("it broke")

    found = attempt(breaks)
    assert type(found) is kind
    assert "it broke" in str(found)
    assert found.__cause__ is None


def test_an_answer_that_breaks_off_or_never_ends() -> None:
    def torn(request: httpx.Request) -> httpx.Response:
        def content() -> Any:
            yield b'{"format": 1, "answers": ['
            raise httpx.ReadError("connection reset")

        return httpx.Response(200, content=content())

    def endless(request: httpx.Request) -> httpx.Response:
        def content() -> Any:
            while True:
                time.sleep(0.01)
                yield b" "

        return httpx.Response(200, content=content())

    assert type(attempt(torn)) is Unclear
    client = asking(endless)
    client.describe()
    client.timeout = 0.1
    with pytest.raises(Unclear, match="an answer without an end"):
        client.ask(images(1))


P = [0.1, 0.2, 0.3, 0.4]
MALFORMED = {
    "no json": (b"<html>", "not JSON"),
    "half a json": (b'{"answers": [', "not JSON"),
    "nothing": (b"", "not JSON"),
    "no utf-8": (b"\xff\xfe\x00", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "a list": ([1], "not a JSON object"),
    "no list": ({"answers": {"0": P}}, "no answers for 2 images"),
    "one missing": ({"answers": [{"index": 0, "probs": P}]}, "1 answers for 2 images"),
    "one more": ({"answers": [{"index": i, "probs": P} for i in range(3)]}, "3 answers for 2 images"),
    "twice": ({"answers": [{"index": 0, "probs": P}] * 2}, "index 0, expected each of 0 to 1 once"),
    "without index": ({"answers": [{"probs": P}] * 2}, "index None"),
    "index from 1": ({"answers": [{"index": i, "probs": P} for i in (1, 2)]}, "index 2"),
    "index as text": ({"answers": [{"index": str(i), "probs": P} for i in (0, 1)]}, "index '0'"),
    "index as bool": ({"answers": [{"index": i, "probs": P} for i in (False, True)]}, "index False"),
    "an answer that is a list": ({"answers": [P, P]}, "not an object"),
    "K - 1": ([0.2, 0.4, 0.4], "probs: 3 for 4 classes"),
    "K + 1": ([*P, 0.0], "probs: 5 for 4 classes"),
    "no probs": (None, "expected a list of numbers"),
    "text": (["0.1", "0.2", "0.3", "0.4"], "expected a list of numbers"),
    "a bool": ([True, 0, 0, 0], "expected a list of numbers"),
    "null": ([None, 0.5, 0.5, 0], "expected a list of numbers"),
    "negative": ([-0.1, 0.3, 0.4, 0.4], "expected a list of numbers from 0 to 1"),
    "percent": ([10, 20, 30, 40], "expected a list of numbers from 0 to 1"),
    "huge": ([10**400, 0, 0, 0], "expected a list of numbers from 0 to 1"),
    "no sum of one": ([0.4, 0.4, 0.4, 0.4], "they add up to 1.6"),
    "nothing likely": ([0.0, 0.0, 0.0, 0.0], "they add up to 0"),
    "nan": (b"NaN", "NaN is not a number"),
    "infinite": (b"-Infinity", "-Infinity is not a number"),
    "overflow": (b"1e999", "expected a list of numbers from 0 to 1"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_an_invalid_answer_is_unclear(name: str) -> None:
    wrong, reason = MALFORMED[name]
    about = {"format": 1, "name": "toy", "version": "v1", "access": "probs"}
    fine = {"index": 0, "probs": P}
    if isinstance(wrong, bytes) and (b"N" in wrong or b"I" in wrong or wrong == b"1e999"):
        content = json.dumps({**about, "answers": [fine, {"index": 1, "probs": [0]}]}).encode()
        content = content.replace(b"[0]", b"[%b, 0, 0, 0]" % wrong)
    elif isinstance(wrong, bytes):
        content = wrong
    elif name == "a list":
        content = b"[1]"
    elif isinstance(wrong, dict):
        content = json.dumps({**about, **wrong}).encode()
    else:
        content = json.dumps({**about, "answers": [fine, {"index": 1, "probs": wrong}]}).encode()
    found = attempt(httpx.Response(200, content=content))
    assert type(found) is Unclear
    assert str(found).startswith("an invalid answer: ")
    assert reason in str(found)


@pytest.mark.parametrize(
    ("access", "answer", "reason"),
    [
        ("topk", {"probs": [0.5]}, "classes: expected as many as probs, 1 to 2"),
        ("topk", {"classes": [1], "probs": []}, "classes: expected as many"),
        ("topk", {"classes": [], "probs": []}, "classes: expected as many"),
        ("topk", {"classes": [0, 1, 2], "probs": [0.1, 0.1, 0.1]}, "classes: expected as many as probs, 1 to 2"),
        ("topk", {"classes": [1, 1], "probs": [0.5, 0.2]}, "named twice"),
        ("topk", {"classes": [1, 4], "probs": [0.5, 0.2]}, "4 is no class from 0 to 3"),
        ("topk", {"classes": [1, 2], "probs": [0.8, 0.7]}, "they add up to 1.5"),
        ("topk", {"classes": [1, 2], "probs": [0.8, 2]}, "numbers from 0 to 1"),
        ("label", {"label": 4}, "4 is no class"),
        ("label", {"label": -1}, "-1 is no class"),
        ("label", {"label": 1.0}, "1.0 is no class"),
        ("label", {"label": True}, "True is no class"),
        ("label", {"label": "1"}, "'1' is no class"),
        ("label", {"probs": P}, "None is no class"),
        ("probs", {"label": 1}, "probs: expected a list"),
        ("probs", {"abstained": 3}, "abstained: expected a reason"),
    ],
)
def test_an_answer_at_another_level_or_out_of_range(access: Any, answer: dict[str, Any], reason: str) -> None:
    teacher = replace(TEACHER, access=access)
    with pytest.raises(wire.Malformed, match=reason):
        wire.answers_in({"answers": [{"index": 0, **answer}]}, teacher, 1)


@pytest.mark.parametrize(
    ("access", "answer"),
    [
        ("probs", Probs((0.1, 0.2, 0.3, 0.4))),
        ("probs", Probs((1e-30, 0.0, 0.0, 1.0))),
        ("topk", TopK((3, 0), (0.5, 0.25))),
        ("topk", TopK((2,), (1.0,))),
        ("label", Label(3)),
        ("probs", Abstained("confidence 0.31")),
        ("label", Abstained()),
    ],
)
def test_what_is_told_is_read_to_the_bit_and_in_order(access: Any, answer: Answer) -> None:
    teacher = replace(TEACHER, access=access)
    answers = [answer, Abstained("x"), answer, Abstained("y")]
    found = wire.parsed(wire.told(answers, teacher))
    found["answers"].reverse()
    assert wire.answers_in(found, teacher, 4) == answers


def test_rounding_may_take_a_sum_away_from_one_as_far_as_it_can() -> None:
    coarse = replace(TEACHER, decimals=0)  # four times 0.25
    assert wire.answers_in({"answers": [{"index": 0, "probs": [0, 0, 0, 0]}]}, coarse, 1) == [Probs((0.0,) * 4)]
    with pytest.raises(wire.Malformed, match="add up to 0"):
        wire.answers_in({"answers": [{"index": 0, "probs": [0, 0, 0, 0]}]}, TEACHER, 1)


@pytest.mark.parametrize("what", ["name", "version", "access"])
def test_another_teacher_than_before_is_refused(what: str) -> None:
    other = replace(TEACHER, **{what: {"name": "toy2", "version": "v2", "access": "label"}[what]})
    sent = []

    def changed(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return good(request, other)

    client = asking(changed)
    with pytest.raises(Unclear, match=f"has changed .{what} was"):  # it was answered, and may have been counted
        client.ask(images(1))
    with pytest.raises(Closed, match="has changed"):
        client.ask(images(1))
    assert len(sent) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": None},
        {"name": ""},
        {"name": 3},
        {"name": "a\nb"},
        {"version": None},
        {"version": 'v"1'},
        {"access": "logits"},
        {"access": "white"},
        {"num_classes": 0},
        {"num_classes": 4.0},
        {"num_classes": True},
        {"image": [2, 3]},
        {"image": [2, 3, 0]},
        {"image": "2x3x1"},
        {"max_batch": 0},
        {"max_batch": "5"},
        {"decimals": -1},
        {"k": None},
        {"price": -1},
        {"price": "free"},
        {"price": float("inf")},
    ],
)
def test_a_description_that_is_none(change: dict[str, Any]) -> None:
    told = json.dumps({**wire.description(TEACHER), **change})
    client = HttpTeacher("http://teacher.test")
    client._transport = httpx.MockTransport(lambda _: httpx.Response(200, text=told))
    with pytest.raises(TeacherError, match="does not describe itself as a teacher"):
        client.describe()


def test_a_description_is_fetched_once_and_costs_nothing() -> None:
    replies = iter([httpx.ReadTimeout("slow"), httpx.Response(500), httpx.Response(429), httpx.Response(401), None])
    fetched = []

    def respond(request: httpx.Request) -> httpx.Response:
        fetched.append(str(request.url))
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return reply or good(request)

    client = HttpTeacher("http://teacher.test/v1/")
    client._transport = httpx.MockTransport(respond)
    for kind in (Busy, Busy, Busy):
        with pytest.raises(kind):
            client.ask(images(1))
    with pytest.raises(TeacherError, match=r"teacher\.client\.url=http://teacher\.test/v1: 401.*Is kd-serve running"):
        client.describe()
    assert client.describe() == client.describe() == TEACHER
    assert fetched == ["http://teacher.test/v1/describe"] * 5


def test_images_that_nobody_would_take_are_not_sent() -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError("sent")

    found = attempt(never, np.zeros((1, 4, 4, 1), np.uint8))
    assert type(found) is Closed
    assert "takes images of 2x3x1, these are 4x4x1: set data.size" in str(found)
    for wrong in (np.zeros((1, 2, 3, 1), np.float32), np.zeros((2, 3, 1), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            asking(never).ask(wrong)


KEY = "Zm9vYmFyLXNlY3JldA"


def test_the_key_is_read_when_it_is_needed_and_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def reply(request: httpx.Request) -> httpx.Response:
        shown.append(request.headers.get("Authorization"))
        return good(request)

    client = HttpTeacher("http://teacher.test", key_env="TEACHER_KEY")
    client._transport = httpx.MockTransport(reply)
    with pytest.raises(TeacherError, match="variable TEACHER_KEY, which key_env names, is not set"):
        client.describe()
    for key in (KEY, KEY + "2"):
        monkeypatch.setenv("TEACHER_KEY", key + "\n")
        client.ask(images(1))
        assert shown[-1] == f"Bearer {key}"
    state = {k: v for k, v in vars(client).items() if k not in ("_client", "_transport", "_lock")}
    assert KEY not in repr(client) + repr(state) + str(pickle.dumps(state))
    assert KEY not in repr(client._client.headers) + repr(client._client._auth)
    monkeypatch.setenv("TEACHER_KEY", "with blank")
    with pytest.raises(Closed, match="holds a blank"):
        client.ask(images(1))


@pytest.mark.parametrize("how", ["echo", "plain", "error"])
def test_the_key_is_in_no_error(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def tells(request: httpx.Request) -> httpx.Response:
        text = f"you sent {request.headers['Authorization']} to me"
        if how == "error":
            raise httpx.ReadError(text, request=request)
        return refusing(401, reason=text) if how == "echo" else httpx.Response(500, text=text)

    found = attempt(tells, key_env="TEACHER_KEY")
    assert "you sent Bearer ***" in str(found)
    shown = "".join(traceback.format_exception(found))
    assert KEY not in shown


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"url": "teacher.test"}, "expected an address such as"),
        ({"url": "ftp://teacher.test"}, "expected an address such as"),
        ({"url": "http://"}, "expected an address such as"),
        ({"url": f"http://me:{KEY}@teacher.test"}, "a key goes into an environment variable"),
        ({"url": f"http://teacher.test/?key={KEY}"}, "a key goes into an environment variable"),
        ({"url": "http://teacher.test", "key_env": "sk-" + KEY}, "expected the NAME of an environment variable"),
        ({"url": "http://teacher.test", "key_env": KEY}, "expected the NAME of an environment variable"),
        ({"url": "http://teacher.test", "timeout": 0}, "expected seconds, more than 0"),
    ],
)
def test_wrong_settings_are_named_without_the_key(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as found:
        HttpTeacher(**settings)
    assert KEY not in str(found.value)


def test_without_httpx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    client = HttpTeacher("http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"pip install 'kd-lightning\[http\]'"):
        client.describe()


def test_a_proxy_is_not_asked_for_the_way_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with toy() as (_, client):
        assert HttpTeacher(str(client.base_url)).describe() == TEACHER
    with pytest.raises(TeacherError, match="no connection"):
        HttpTeacher("http://teacher.test").describe()


@pytest.mark.parametrize(("access", "answer"), [("probs", probs), ("topk", topk), ("label", label)])
def test_over_a_real_connection_every_level_arrives_in_order(access: Any, answer: Any) -> None:
    asked = images(3, 1, 0, 2, 1)
    with toy(answer, teacher=replace(TEACHER, access=access)) as (service, client):
        client = HttpTeacher(str(client.base_url))
        assert client.describe() == service.teacher
        assert client.ask(asked) == answer(asked)
        assert client.ask(asked[::2]) == answer(asked[::2])  # a view, whose pixels do not lie side by side
        assert client.ask(asked.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3)) == answer(asked)
        assert service.tally.images == 13


def test_over_a_real_connection_every_refusal_is_what_it_is() -> None:
    with toy(limits=Limits(images_per_minute=6)) as (service, client):
        client = HttpTeacher(str(client.base_url))
        client.ask(images(1, 2, 3, 0, 1))
        with pytest.raises(Busy) as busy:
            client.ask(images(1, 2))
        assert busy.value.retry_after == 10
        with pytest.raises(Unfit, match="at most 5 images"):
            client.ask(images(*[1] * 6))
        with pytest.raises(Unfit, match="no images"):
            client.ask(images(1)[:0])
        service.teacher = replace(service.teacher, version="v2")
        with pytest.raises(Closed, match="has changed: 412: the teacher is toy, version v2"):
            client.ask(images(1))
        assert service.tally.questions == 1
    with pytest.raises(Busy, match="no connection"):
        client.ask(images(1))
    with toy(key="k") as (_, client), pytest.raises(TeacherError, match="401"):
        HttpTeacher(str(client.base_url)).describe()


def test_a_lost_answer_is_repeated_and_not_counted_twice() -> None:
    lost = []

    class Loses(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            if request.method == "POST" and not lost:
                lost.append(response.read())
                raise httpx.ReadTimeout("timed out")
            return response

    with toy() as (service, client):
        client, asked = HttpTeacher(str(client.base_url)), images(1, 2)
        client._transport = Loses()
        with pytest.raises(Unclear, match="no answer"):
            client.ask(asked)
        assert (service.tally.questions, service.tally.images, service.tally.repeated) == (1, 2, 0)
        assert client.ask(asked) == probs(asked)
        assert (service.tally.questions, service.tally.images, service.tally.repeated) == (1, 2, 1)
        client.ask(asked)  # a new question, as drift checks are
        assert (service.tally.questions, service.tally.images, service.tally.repeated) == (2, 4, 1)


def test_ids_stay_with_a_question_until_it_is_clear_what_came_of_it() -> None:
    replies = iter([httpx.Response(500), httpx.ReadTimeout("slow"), None, refusing(429), None])
    ids = []

    def reply(request: httpx.Request) -> httpx.Response:
        ids.append(request.headers["Idempotency-Key"])
        now = next(replies)
        if isinstance(now, Exception):
            raise now
        return now or good(request)

    client = asking(reply)
    for kind in (Unclear, Unclear, None, Busy, None):
        if kind is None:
            client.ask(images(1))
        else:
            with pytest.raises(kind):
                client.ask(images(1))
    assert len(set(ids[:3])) == 1
    assert len(set(ids)) == 3
    assert not client._open


def test_lost_questions_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_lightning.teachers.remote.http.OPEN", 3)
    client = asking(httpx.Response(500))
    for c in range(4):
        with pytest.raises(Unclear):
            client.ask(images(c))
    assert len(client._open) == 3


def test_threads_may_ask_at_once() -> None:
    with toy() as (service, client), ThreadPoolExecutor(8) as pool:
        client = HttpTeacher(str(client.base_url))
        each = [images(i % 4, i // 4 % 4, i // 16) for i in range(24)]
        assert list(pool.map(client.ask, each)) == [probs(asked) for asked in each]
        assert service.tally.images == 72


def test_the_composition_names_it() -> None:
    resolvers.register()
    found = read(["teacher=http", "teacher.client.url=https://teacher.test:8443/v1", "teacher.client.key_env=MY_KEY"])
    assert not found.problems
    assert not found.unset
    client = instantiate(found.cfg.teacher.client)
    assert (client.url, client.key_env, client.timeout) == ("https://teacher.test:8443/v1", "MY_KEY", 60.0)
    assert (found.cfg.teacher.net, found.cfg.teacher.access) == (None, "probs")
