"""What the service answers, refuses and counts, over a real connection."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import PATIENCE, wait_until
from loopback import TEACHER, images, post, probs, serving, toy

from kd_lightning.cli.serve.app import Service
from kd_lightning.cli.serve.limits import AnswerCache, Limits, Tally
from kd_lightning.errors import UserError
from kd_lightning.teachers.answer_types import Answer, Probs
from kd_lightning.teachers.remote import protocol as wire

TYPE = "application/x-kd-images; format=1; dtype=uint8; shape="
ONE = images(1).tobytes()

MALFORMED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no type": ({"headers": {}}, 415, "expected the content type application/x-kd-images"),
    "wrong type": ({"headers": {"Content-Type": "image/png"}}, 415, "expected the content type"),
    "json": ({"json": {"images": [[1]]}}, 415, "expected the content type"),
    "wrong dtype": ({"headers": {"Content-Type": TYPE.replace("uint8", "float32") + "1x2x3x1"}}, 415, "dtype=uint8"),
    "later format": ({"headers": {"Content-Type": TYPE.replace("=1;", "=2;") + "1x2x3x1"}}, 415, "format=1"),
    "no shape": ({"headers": {"Content-Type": TYPE}}, 400, "shape=NxHxWxC"),
    "three numbers": ({"headers": {"Content-Type": TYPE + "1x2x3"}}, 400, "four whole numbers"),
    "negative": ({"headers": {"Content-Type": TYPE + "-1x2x3x1"}}, 400, "four whole numbers"),
    "twice negative": ({"headers": {"Content-Type": TYPE + "-1x-2x3x1"}}, 400, "four whole numbers"),
    "fractions": ({"headers": {"Content-Type": TYPE + "1.5x2x3x1"}}, 400, "four whole numbers"),
    "garbage shape": ({"headers": {"Content-Type": (TYPE + "Ä²x٣x3x1").encode("utf-8")}}, 400, "four whole numbers"),
    "endless shape": ({"headers": {"Content-Type": TYPE + "9" * 5000 + "x2x3x1"}}, 400, "four whole numbers"),
    "huge shape": ({"headers": {"Content-Type": TYPE + "x".join(["999999999"] * 4)}}, 413, "at most 5 images"),
    "too many": ({"content": ONE * 6, "headers": {"Content-Type": TYPE + "6x2x3x1"}}, 413, "at most 5 images of 2x3x1"),
    "no images": ({"content": b"", "headers": {"Content-Type": TYPE + "0x2x3x1"}}, 422, "no images"),
    "wrong size": ({"headers": {"Content-Type": TYPE + "1x3x2x1"}}, 422, "images of 3x2x1: expected 2x3x1"),
    "channels": ({"content": ONE * 3, "headers": {"Content-Type": TYPE + "1x2x3x3"}}, 422, "expected 2x3x1"),
    "body too short": ({"content": ONE[:-1]}, 400, "1x2x3x1 are 6 bytes, the body has 5"),
    "body too long": ({"content": ONE + b"?"}, 400, "1x2x3x1 are 6 bytes, the body has 7"),
    "far too long": ({"content": b"?" * 2_000_000}, 413, "at most 5 images"),
    "chunks too short": ({"content": iter([b"12", b"3"])}, 400, "the shape says 6 bytes, the body has 3"),
    "chunks without end": ({"content": iter([b"?" * 10_000] * 300)}, 400, "the body has more than 6"),
    "no pixels": ({"content": b""}, 400, "1x2x3x1 are 6 bytes, the body has 0"),
    "other version": ({"headers": {"Content-Type": TYPE + "1x2x3x1", "If-Match": '"v2"'}}, 412, "toy, version v1"),
    "blank id": ({"headers": {"Content-Type": TYPE + "1x2x3x1", "Idempotency-Key": "a b"}}, 400, "printable"),
    "endless id": ({"headers": {"Content-Type": TYPE + "1x2x3x1", "Idempotency-Key": "a" * 201}}, 400, "1 to 200"),
    "other path": ({"url": "/answer"}, 404, "POST /answer: there are GET /describe, POST /ask, GET /count"),
    "slash": ({"url": "/ask/"}, 404, "POST /ask/: there are"),
    "other method": ({"method": "GET"}, 405, "GET /ask: there are"),
    "delete": ({"method": "DELETE", "url": "/count"}, 405, "DELETE /count: there are"),
}

RAW = {
    "garbage": b"\x00\xff\x13garbage\r\n\r\n" * 50,
    "no http": b"HELLO\r\n\r\n",
    "huge length": b"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: " + TYPE.encode() + b"1x2x3x1\r\n"
    b"Content-Length: 99999999999999\r\n\r\nabc",
    "negative length": b"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: " + TYPE.encode() + b"1x2x3x1\r\n"
    b"Content-Length: -1\r\n\r\n",
    "broken chunk": b"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: " + TYPE.encode() + b"1x2x3x1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nnothex\r\n",
    "endless chunks": b"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: " + TYPE.encode() + b"1x2x3x1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n%b\r\n" % (b"?" * 1000) * 50,
}
HALF = b"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: " + TYPE.encode() + b"1x2x3x1\r\nContent-Length: 6\r\n\r\nabc"


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[Service, Any]]:
    """A service that nothing right is ever asked of but at the end of a test."""
    with toy() as found:
        yield found


def still_answers(service: Service, client: httpx.Client) -> None:
    """What was refused was not counted, and what is right is answered as before."""
    before = client.get("/count").json()
    told = [answer["probs"] for answer in post(client, images(2, 0)).json()["answers"]]
    assert told == [[0.1, 0.1, 0.7, 0.1], [0.7, 0.1, 0.1, 0.1]]
    after = client.get("/count").json()
    assert (after["questions"], after["images"]) == (before["questions"] + 1, before["images"] + 2)
    assert service.under_way == 0


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_questions_are_refused_with_a_reason_and_not_counted(name: str, asked: tuple[Service, Any]) -> None:
    service, client = asked
    how, status, reason = MALFORMED[name]
    before = service.tally.images
    how = {"method": "POST", "url": "/ask", "headers": {"Content-Type": TYPE + "1x2x3x1"}, **how}
    if not {"content", "json"} & how.keys() and how["method"] == "POST":
        how["content"] = ONE
    if "json" in how:
        del how["headers"]
    response = client.request(**how)
    error = response.json()["error"]
    assert (response.status_code, error["counted"]) == (status, False)
    assert reason in error["reason"]
    assert service.tally.images == before
    still_answers(service, client)


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_question_at_all_ends_its_connection_alone(name: str, asked: tuple[Service, Any]) -> None:
    service, client = asked
    assert first_line(client, RAW[name]).startswith(b"HTTP/1.1 413 " if name == "huge length" else b"HTTP/1.1 400 ")
    still_answers(service, client)


def first_line(client: httpx.Client, sent: bytes) -> bytes:
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.sendall(sent)
        return connection.recv(1000).split(b"\r\n")[0]


def test_a_question_that_does_not_arrive_is_given_up() -> None:
    with toy(limits=Limits(patience=0.2)) as (service, client):
        assert first_line(client, HALF).startswith(b"HTTP/1.1 408 ")
        assert (service.tally.images, service.under_way) == (0, 0)


def test_a_question_that_breaks_off_is_not_counted(asked: tuple[Service, Any]) -> None:
    service, client = asked
    before = service.tally.images
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(HALF)
        wait_until(lambda: service.under_way)
    wait_until(lambda: not service.under_way)
    assert service.tally.images == before
    still_answers(service, client)


def test_it_describes_itself_and_its_limits(asked: tuple[Service, Any]) -> None:
    _, client = asked
    response = client.get("/describe")
    assert wire.described_in(response.json()) == TEACHER
    assert response.json()["limits"] == asdict(Limits())
    assert response.headers["ETag"] == '"v1"'
    assert post(client, images(1), If_Match='"v0", "v1"').status_code == 200


@pytest.mark.parametrize("path", ["/describe", "/count", "/ask"])
def test_nothing_is_told_without_the_key(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    with toy(key="s3cret-key") as (service, client):
        method = "POST" if path == "/ask" else "GET"
        whole = {"content": ONE, "headers": {"Content-Type": TYPE + "1x2x3x1"}} if path == "/ask" else {"headers": {}}
        for wrong in (None, "", "s3cret-key", "Bearer", "Bearer s3cret-kez", "Bearer s3cret-key2", b"Bearer \xff\xfe"):
            headers = whole["headers"] if wrong is None else {**whole["headers"], "Authorization": wrong}
            response = client.request(method, path, **{**whole, "headers": headers})
            assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "s3cret" not in response.text
        assert service.tally.questions == 0
        headers = {**whole["headers"], "Authorization": "Bearer s3cret-key"}
        response = client.request(method, path, **{**whole, "headers": headers})
        assert response.status_code == 200
        assert "s3cret" not in response.text + str(dict(response.headers))
    assert "s3cret" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("limits", "amount", "wait"), [(Limits(requests_per_minute=2), 5, 30), (Limits(images_per_minute=9), 4, 20)]
)
def test_too_many_too_soon_are_told_when_to_come_again(limits: Limits, amount: int, wait: int) -> None:
    now = [100.0]
    with toy(limits=limits, clock=lambda: now[0]) as (service, client):
        many = images(*[1] * amount)
        assert [post(client, many).status_code for _ in range(3)] == [200, 200, 429]
        refused = post(client, many)
        # requests: one more in 30 s; images: 1 of 9 is left, 3 more come in 20 s
        assert refused.headers["Retry-After"] == str(wait)
        assert refused.json()["error"]["code"] == "rate"
        assert client.get("/count").json()["questions"] == 2
        now[0] += wait - 1
        assert post(client, many).headers["Retry-After"] == "1"
        now[0] += 1
        assert post(client, many).status_code == 200
        now[0] += 10_000  # what was not used does not add up
        assert [post(client, many).status_code for _ in range(3)] == [200, 200, 429]
        assert service.tally.images == 5 * amount


def test_it_stays_responsive_while_the_network_works_and_refuses_what_it_cannot_hold() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(asked: np.ndarray) -> list[Answer]:
        begun.set()
        assert go_on.wait(PATIENCE)
        return probs(asked)

    with toy(slow, limits=Limits(waiting=2)) as (service, client), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, client, images(1))]
        assert begun.wait(PATIENCE)  # of two places one address may fill one only with a body that is on its way
        waiting.append(pool.submit(post, client, images(2)))
        wait_until(lambda: service.under_way == 2)
        assert client.get("/count").json()["questions"] == 0
        refused = post(client, images(3))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["error"]["counted"] is False
        go_on.set()
        assert [f.result().json()["answers"][0]["probs"].index(0.7) for f in waiting] == [1, 2]
        assert client.get("/count").json() == {"questions": 2, "images": 2, "repeated": 0}


def test_the_same_id_is_answered_and_counted_once(tmp_path: Path) -> None:
    calls = []

    def counted(asked: np.ndarray) -> list[Answer]:
        calls.append(len(asked))
        time.sleep(0.1)
        return probs(asked)

    with toy(counted, tally=Tally(tmp_path / "count")) as (_, client), ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda _: post(client, images(1, 2), Idempotency_Key="a"), range(3)))
        later = post(client, images(1, 2), Idempotency_Key="a")
        assert len({response.text for response in [*together, later]}) == 1
        assert later.headers["Idempotent-Replayed"] == "true"
        assert sorted(r.headers["Idempotent-Replayed"] for r in together) == ["false", "true", "true"]
        assert calls == [2]
        other = post(client, images(1, 3), Idempotency_Key="a")
        assert (other.status_code, other.json()["error"]["code"]) == (422, "id")
        assert client.get("/count").json() == {"questions": 1, "images": 2, "repeated": 3}
        post(client, images(1, 2), Idempotency_Key="b")
        post(client, images(1, 2))
    lines = [json.loads(line) for line in (tmp_path / "count").read_text().splitlines()]
    assert [(line["id"], line["images"]) for line in lines] == [("a", 2), ("b", 2), (None, 2)]


def test_an_answer_that_failed_is_not_remembered_nor_counted(capfd: pytest.CaptureFixture[str]) -> None:
    tries = iter([RuntimeError("out of memory"), None])

    def fails_once(asked: np.ndarray) -> list[Answer]:
        if error := next(tries):
            raise error
        return probs(asked)

    with toy(fails_once) as (_, client):
        failed = post(client, images(1), Idempotency_Key="a")
        assert failed.status_code == 500
        assert failed.json()["error"] == {
            "code": "failed",
            "reason": "the teacher failed; nothing was counted",
            "counted": False,
        }
        assert client.get("/count").json()["questions"] == 0
        assert post(client, images(1), Idempotency_Key="a").status_code == 200
        assert client.get("/count").json() == {"questions": 1, "images": 1, "repeated": 0}
    assert capfd.readouterr().err == "kd-serve: RuntimeError: out of memory\n"


def test_no_number_that_is_none_leaves() -> None:
    with toy(lambda asked: [Probs((float("nan"),) * 4) for _ in asked]) as (_, client):
        assert post(client, images(1)).status_code == 500
        assert client.get("/count").json()["images"] == 0


def test_what_cannot_be_written_down_is_not_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with toy(tally=Tally(tmp_path / "count")) as (_, client):
        monkeypatch.setattr("kd_lightning.cli.serve.limits.os.write", _disk_full)
        assert post(client, images(1)).status_code == 500
        assert client.get("/count").json()["images"] == 0


def _disk_full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_for_the_count_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"count_file=.*: Is a directory"):
        Tally(tmp_path)


def test_the_memory_is_bounded_and_forgets_the_oldest() -> None:
    async def answered(size: int) -> bytes:
        return b"x" * size

    async def story() -> tuple[list[str], int]:
        memory = AnswerCache(size=100)
        for i in range(10):
            task = asyncio.ensure_future(answered(30))
            memory.keep(str(i), b"", task)
            await task
        task = asyncio.ensure_future(answered(1000))
        memory.keep("large", b"", task)
        during = list(memory.entries)
        await task
        await asyncio.sleep(0)
        assert memory.entries == {}
        return during, memory.held

    assert asyncio.run(story()) == (["7", "8", "9", "large"], 0)


def test_remembering_an_answer_takes_the_same_work_however_many_are_remembered() -> None:
    class Walked(dict[str, Any]):
        steps = 0

        def items(self) -> Any:
            Walked.steps += len(self)
            return super().items()

        def __iter__(self) -> Any:
            Walked.steps += len(self)
            return super().__iter__()

        def keys(self) -> Any:
            Walked.steps += len(self)
            return super().keys()

    async def answered() -> bytes:
        return b"x" * 10

    async def story() -> None:
        memory = AnswerCache(size=1000)
        memory.entries = Walked()  # type: ignore[assignment]
        for i in range(300):
            task = asyncio.ensure_future(answered())
            memory.keep(str(i), b"", task)
            await task
        await asyncio.sleep(0)
        assert len(memory.entries) == 100
        assert memory.held == 1000

    asyncio.run(story())
    assert Walked.steps == 0


def test_logits_never_leave() -> None:
    for wrong in (replace(TEACHER, access="logits"), replace(TEACHER, image=None)):
        with pytest.raises(ValueError, match="answers with probs, topk or label"):
            Service(probs, wrong)


def test_what_is_under_way_is_answered_before_it_ends() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(asked: np.ndarray) -> list[Answer]:
        begun.set()
        assert go_on.wait(PATIENCE)
        return probs(asked)

    service = Service(slow, TEACHER)
    with ThreadPoolExecutor(1) as pool, httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        with serving(service) as address:
            client.base_url = httpx.URL(address)
            waiting = pool.submit(post, client, images(3))
            assert begun.wait(PATIENCE)
            threading.Timer(0.2, go_on.set).start()
        assert waiting.result().status_code == 200
        with pytest.raises(httpx.ConnectError):
            client.get("/count")


PROGRAM = """
import socket, sys, time
sys.path[:0] = [{folder!r}, {folder!r} + "/.."]  # loopback, and the conftest that it imports
from loopback import TEACHER, Service, probs, server_of
from kd_lightning.cli.serve.limits import Tally

def slowly(asked):
    time.sleep(0.02)
    return probs(asked)

with socket.create_server(("127.0.0.1", 0)) as listening:
    print("http://127.0.0.1:%d" % listening.getsockname()[1], flush=True)
    server_of(Service(slowly, TEACHER, tally=Tally({count!r}))).run(sockets=[listening])
"""


@pytest.mark.slow
def test_the_count_outlives_kill_9(tmp_path: Path) -> None:
    program = PROGRAM.format(folder=str(Path(__file__).parent), count=str(tmp_path / "count"))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        asked = []
        patient = {"base_url": address, "trust_env": False, "timeout": PATIENCE}
        with httpx.Client(**patient) as client, suppress(httpx.TransportError):
            while len(asked) < 1000:
                asked.append(f"q{len(asked)}")
                if len(asked) == 4:
                    threading.Timer(0.05, process.kill).start()
                assert post(client, images(1, 2), Idempotency_Key=asked[-1]).status_code == 200
    counted = [json.loads(line)["id"] for line in (tmp_path / "count").read_text().splitlines()]
    assert counted in (asked, asked[:-1])  # the last one was under way
    assert 3 <= len(counted) < 1000
