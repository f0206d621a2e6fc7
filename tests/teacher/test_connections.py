"""Connections that ask nothing, or not to the end, keep nobody out for long, and fill no log."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import wait_until
from loopback import TEACHER, images, post, serving, toy

from kd_lightning.cli.serve.app import Service
from kd_lightning.cli.serve.connections import Log
from kd_lightning.cli.serve.limits import Limits
from kd_lightning.teachers.answer_types import Probs
from kd_lightning.teachers.remote import protocol as wire

SLOW = Limits(patience=0.3)
ASK = b"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Type: " + wire.content_type((1, 2, 3, 1)).encode() + b"\r\n"
BODY = ASK + b"Content-Length: 6\r\n\r\nabc"


def connected(client: httpx.Client, sent: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    address = client.base_url.host, client.base_url.port
    connection = socket.create_connection(address, timeout=60, source_address=(source, 0))
    connection.sendall(sent)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    told = b""
    try:
        while more := connection.recv(10_000):
            told += more
    except ConnectionResetError:
        pass
    return told


@contextmanager
def somewhere_else(client: httpx.Client) -> Iterator[httpx.Client]:
    """A client with another address."""
    other = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=client.base_url, transport=other, timeout=20) as found:
        yield found


PROGRAM = """
import resource, socket, sys
sys.path[:0] = [{folder!r}, {folder!r} + "/.."]  # loopback, and the conftest that it imports
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
from loopback import TEACHER, Service, probs, server_of

with socket.create_server(("127.0.0.1", 0)) as listening:
    print("http://127.0.0.1:%d" % listening.getsockname()[1], flush=True)
    server_of(Service(probs, TEACHER, key="KEY")).run(sockets=[listening])
"""


@pytest.mark.slow
def test_more_half_questions_than_open_files_shut_nobody_out() -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 500:
        pytest.skip("so many connections cannot be opened here")
    program = PROGRAM.format(folder=str(Path(__file__).parent))
    with (
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        ExitStack() as held,
    ):
        assert process.stdout is not None
        address = process.stdout.readline().strip().decode()
        with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
            for i in range(300):
                held.enter_context(connected(client, (b"", b"POST /ask HT", ASK, BODY)[i % 4]))
            assert post(client, images(1), Authorization="Bearer KEY").status_code == 200
        process.terminate()
        held.close()
        _, said = process.communicate(timeout=60)
    assert said.count(b"\n") <= 2
    assert b"Traceback" not in said


@pytest.mark.parametrize("key", [None, "KEY"])
def test_a_head_that_trickles_in_is_given_up(key: str | None) -> None:
    with toy(limits=SLOW, key=key) as (_, client), connected(client, b"GET /count HTTP/1.1\r\nX: ") as connection:
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.02):
                try:
                    connection.sendall(b"a")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        told = all_of(connection)
        stop.set()
        thread.join()
        assert told.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b'"counted":false' in told.replace(b" ", b"")


def test_a_second_question_has_its_time_too() -> None:
    with toy(limits=SLOW) as (_, client), connected(client, b"GET /count HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert b"200 OK" in connection.recv(10_000)
        connection.sendall(b"GET /cou")
        assert b"HTTP/1.1 408 " in all_of(connection)


@pytest.mark.parametrize("head", [b"POST /nowhere HTTP/1.1\r\nHost: x\r\n", ASK])
def test_a_body_that_nobody_waits_for_holds_no_connection(head: bytes) -> None:
    with toy(limits=SLOW, key="KEY") as (_, client), connected(client, head) as connection:
        connection.sendall(b"Content-Length: 6\r\n\r\nabc")
        assert all_of(connection).split()[1] in (b"401", b"404")  # and then it is closed


def test_an_answer_that_is_not_read_holds_no_connection() -> None:
    teacher = replace(TEACHER, num_classes=200_000)
    service = Service(lambda asked: [Probs((0.0,) * 200_000) for _ in asked], teacher, SLOW)
    ended = threading.Event()
    service.log.say = lambda what: ended.set() if "reading of an answer" in what else None  # type: ignore[method-assign]
    with (
        serving(service, buffer=4096) as address,
        httpx.Client(base_url=address) as client,
        connected(client, ASK + b"Content-Length: 6\r\n\r\nabcdef"),
    ):
        assert ended.wait(60)


def test_who_asks_keeps_a_connection_and_who_does_not_gives_way() -> None:
    limits = Limits(connections=3, connections_per_address=2)
    with toy(limits=limits, key="KEY") as (_, client), somewhere_else(client) as other, ExitStack() as held:
        key = {"Authorization": "Bearer KEY"}
        idle = held.enter_context(connected(client))
        stranger = held.enter_context(connected(client, b"GET /count HTTP/1.1\r\nHost: x\r\n\r\n"))
        told = b""
        while b'"counted":false}' not in told:
            more = stranger.recv(10_000)
            assert more, told
            told += more
        assert client.get("/count", headers=key).status_code == 200  # in the place of the first
        assert all_of(idle).startswith(b"HTTP/1.1 503 ")
        second = held.enter_context(httpx.Client(base_url=client.base_url, trust_env=False, timeout=20))
        assert second.get("/count", headers=key).status_code == 200  # in the place of the stranger
        assert all_of(stranger).startswith(b"HTTP/1.1 503 ")
        third = held.enter_context(connected(client, b"GET /count HTTP/1.1\r\nHost: x\r\n\r\n"))
        refused = all_of(third)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"2 connections of 127.0.0.1 are open" in refused
        assert b"retry-after: 1" in refused
        assert other.get("/count", headers=key).status_code == 200
        fourth = held.enter_context(connected(client, source="127.0.0.3"))
        assert b"3 connections are open" in all_of(fourth)
        assert second.get("/count", headers=key).status_code == 200


def test_bodies_on_their_way_take_half_the_places_of_all() -> None:
    with toy(limits=Limits(waiting=4)) as (service, client), somewhere_else(client) as other, ExitStack() as held:
        for n in (1, 2):
            held.enter_context(connected(client, BODY))
            wait_until(lambda n=n: service.under_way >= n)
        assert post(client, images(1)).json()["error"]["reason"] == "2 queries from 127.0.0.1 are arriving"
        assert post(other, images(1)).status_code == 200
        held.close()
        wait_until(lambda: not service.under_way)
        assert post(client, images(1)).status_code == 200
        assert not service.arriving


def test_one_line_a_minute_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    log = Log(lambda: now[0])
    for _ in range(1000):
        log.say("refused 1.2.3.4: slow")
        now[0] += 0.1
    assert capfd.readouterr().err.splitlines() == [
        "kd-serve: refused 1.2.3.4: slow",
        "kd-serve: refused 1.2.3.4: slow (599 more in the last 60 seconds)",
    ]


def test_what_the_event_loop_complains_of_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with toy() as (service, _):
        loop: Any = None
        service.log.error(loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "full")})
    assert capfd.readouterr().err == "kd-serve: socket.accept() out of system resource ([Errno 24] full)\n"
