"""A service on loopback while a test wants it, and a teacher whose answer to an image is the image's first pixel."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from conftest import PATIENCE

from kd_lightning.cli.serve.app import Service, server_of
from kd_lightning.teachers.answer_types import Answer, Described, Label, Probs, TopK
from kd_lightning.teachers.remote import protocol as wire

TEACHER = Described("toy", "v1", "probs", num_classes=4, image=(2, 3, 1), max_batch=5, decimals=2, k=2)


def images(*first: int) -> np.ndarray:
    """One image for each, uint8 (N, 2, 3, 1); its first pixel is the class that the teacher will tell."""
    drawn = np.random.default_rng(0).integers(0, 256, (len(first), 2, 3, 1), dtype=np.uint8)
    drawn[:, 0, 0, 0] = first
    return drawn


def probs(asked: np.ndarray) -> list[Answer]:
    return [Probs(tuple(0.7 if c == image[0, 0, 0] else 0.1 for c in range(4))) for image in asked]


def topk(asked: np.ndarray) -> list[Answer]:
    return [TopK((int(image[0, 0, 0]), (int(image[0, 0, 0]) + 1) % 4), (0.7, 0.2)) for image in asked]


def label(asked: np.ndarray) -> list[Answer]:
    return [Label(int(image[0, 0, 0])) for image in asked]


@contextmanager
def serving(service: Service, *, buffer: int | None = None) -> Iterator[str]:
    """Its address; afterwards what is under way is answered, and the server has ended."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if buffer is not None:  # bytes that the system takes of an answer which nobody reads
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        server = server_of(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield "http://{}:{}".format(*listening.getsockname())
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextmanager
def toy(answer: Callable[[np.ndarray], Sequence[Answer]] = probs, **settings: Any) -> Iterator[tuple[Service, Any]]:
    """The toy teacher as a service, and a client of its address."""
    service = Service(answer, settings.pop("teacher", TEACHER), **settings)
    with serving(service) as address, httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE) as client:
        yield service, client


def post(client: httpx.Client, asked: np.ndarray, **headers: str) -> httpx.Response:
    """One question."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"Content-Type": wire.content_type(asked.shape), **headers}
    return client.post("/ask", content=asked.tobytes(), headers=sent)
