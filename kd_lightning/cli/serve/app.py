"""A teacher as an HTTP service with bounded memory, rates and connections; ``protocol`` has the format.

The event loop only reads, checks and writes; the network runs in one thread, one query after the other. A query counts
when its answers are computed, before they are sent; a refused query does not count.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kd_lightning.cli.serve.connections import BACKLOG, KEEP, Connection, Connections, Log
from kd_lightning.cli.serve.limits import AnswerCache, Bucket, Limits, Refused, Tally
from kd_lightning.teachers.answer_types import Answer, Described
from kd_lightning.teachers.remote import protocol as wire


class Service:
    """Answers queries to a teacher over HTTP.

    Args:
        answer: images uint8 (N, H, W, C) to N answers; called in one thread.
        teacher: its description; ``image`` and ``max_batch`` bound the body of a query.
        limits: rates, concurrency and timeouts.
        key: that every request must send, None for none.
        tally: counts the answers.
        clock: monotonic seconds.

    Raises:
        ValueError: the description has no image size, or access level ``logits``.
    """

    def __init__(
        self,
        answer: Callable[[np.ndarray], Sequence[Answer]],
        teacher: Described,
        limits: Limits | None = None,
        *,
        key: str | None = None,
        tally: Tally | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if teacher.image is None or teacher.access not in ("probs", "topk", "label"):
            raise ValueError("a service answers with probs, topk or label, for images of one size")
        self.answer, self.teacher, self.limits = answer, teacher, limits or Limits()
        self.shape: tuple[int, int, int] = teacher.image
        self.key = None if key is None else key.encode()
        self.tally, self.memory = tally or Tally(), AnswerCache()
        self.requests = Bucket(self.limits.requests_per_minute, clock)
        self.images = Bucket(self.limits.images_per_minute, clock)
        self.under_way = 0
        self.arriving: Counter[str] = Counter()
        self.log = Log(clock)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="teacher")

    def app(self) -> Starlette:
        """The application, for any ASGI server with a single process."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            asyncio.get_running_loop().set_exception_handler(self.log.error)
            yield
            self.worker.shutdown(wait=True, cancel_futures=True)

        def handler(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
            async def endpoint(request: Request) -> Response:
                try:
                    self._refuse_stranger(request)
                    request.state.known = True  # keeps its connection when places run short
                    return await handle(request)
                except Refused as refused:
                    return refused.response()
                except ClientDisconnect:
                    return Response(status_code=400)  # the client has gone
                except Exception as error:
                    print(f"kd-serve: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    return Refused(500, "failed", "the teacher failed; nothing was counted").response()

            return endpoint

        routes = [
            Route("/describe", handler(self.describe)),
            Route("/ask", handler(self.ask), methods=["POST"]),
            Route("/count", handler(self.count)),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _no_such_thing}, lifespan=lifespan)
        app.router.redirect_slashes = False
        return app

    async def describe(self, _: Request) -> Response:
        """Description of the teacher, and the limits."""
        content = {**wire.description(self.teacher), "limits": asdict(self.limits)}
        return JSONResponse(content, headers={"ETag": f'"{self.teacher.version}"'})

    async def count(self, _: Request) -> Response:
        """Number of queries and images answered since the start."""
        names = ("questions", "images", "repeated")
        return JSONResponse({name: getattr(self.tally, name) for name in names})

    async def ask(self, request: Request) -> Response:
        """Answer one query."""
        shape = self._announced(request)
        address = request.client.host if request.client else ""
        self._admit(shape[0], address)
        self.under_way += 1
        try:
            self.arriving[address] += 1
            try:
                pixels = await self._body(request, math.prod(shape))
            finally:
                self.arriving[address] -= 1
                self.arriving += Counter()  # forgets those at 0
            identity = request.headers.get("Idempotency-Key")
            content = b"" if identity is None else hashlib.sha256(pixels).digest()
            task = None if identity is None else self.memory.find(identity, content)
            repeated = task is not None
            if task is None:
                task = asyncio.create_task(self._answered(np.frombuffer(pixels, np.uint8).reshape(shape), identity))
                if identity is not None:
                    self.memory.keep(identity, content, task)
            body = await asyncio.shield(task)  # a repeated query may be waiting for it
        finally:
            self.under_way -= 1
        self.tally.repeated += repeated
        return Response(body, media_type="application/json", headers={"Idempotent-Replayed": str(repeated).lower()})

    async def _answered(self, images: np.ndarray, identity: str | None) -> bytes:
        def work() -> bytes:
            body = wire.told(self.answer(images), self.teacher)
            self.tally.add(len(images), identity)
            return body

        return await asyncio.get_running_loop().run_in_executor(self.worker, work)

    def _refuse_stranger(self, request: Request) -> None:
        if self.key is None:
            return
        shown = request.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(shown, b"Bearer " + self.key):
            how = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, "key", "expected the header Authorization: Bearer KEY, with the right key", headers=how)

    def _announced(self, request: Request) -> tuple[int, int, int, int]:
        """The shape that a query announces, after all of its headers are checked."""
        headers, most = request.headers, self.teacher.max_batch
        try:
            shape = wire.shape_in(headers.get("Content-Type", ""))
        except LookupError as error:
            raise Refused(415, "type", str(error.args[0])) from None
        except wire.Malformed as error:
            raise Refused(400, "shape", str(error)) from None
        length = headers.get("Content-Length", str(math.prod(shape)))
        if shape[0] > most or int(length) > most * math.prod(self.shape):
            raise Refused(413, "too_many", f"at most {most} images of {_by(self.shape)} in one query")
        if shape[0] == 0:
            raise Refused(422, "empty", "no images: expected at least one")
        if shape[1:] != self.shape:
            raise Refused(422, "shape", f"images of {_by(shape[1:])}: expected {_by(self.shape)}, as HxWxC")
        if int(length) != math.prod(shape):
            raise Refused(400, "length", f"{_by(shape)} are {math.prod(shape)} bytes, the body has {length}")
        wanted = headers.get("If-Match", "*")
        if not {"*", f'"{self.teacher.version}"'} & {tag.strip() for tag in wanted.split(",")}:
            raise Refused(412, "version", f"the teacher is {self.teacher.name}, version {self.teacher.version}")
        if not wire.IDENTITY.fullmatch(headers.get("Idempotency-Key", "none")):
            raise Refused(400, "id", "Idempotency-Key: expected 1 to 200 printable characters")
        return shape

    def _admit(self, images: int, address: str) -> None:
        """Admit a query or refuse it; one address may fill half of the places with bodies that are still arriving."""
        if self.under_way >= self.limits.waiting:
            raise Refused(503, "busy", f"{self.under_way} queries are in flight", after=1)
        if self.arriving[address] >= (self.limits.waiting + 1) // 2:
            raise Refused(503, "busy", f"{self.arriving[address]} queries from {address} are arriving", after=1)
        wait = max(self.requests.wait(1), self.images.wait(images))
        if wait > 0:
            asked, shown = self.limits.requests_per_minute, self.limits.images_per_minute
            allowed = [f"{most:g} {what} a minute" for most, what in ((asked, "queries"), (shown, "images")) if most]
            raise Refused(429, "rate", f"at most {' and '.join(allowed)}", after=wait)
        self.requests.take(1)
        self.images.take(images)

    async def _body(self, request: Request, size: int) -> bytearray:
        """The body, of exactly ``size`` bytes."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.patience):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > size:
                        break
        except TimeoutError:
            raise Refused(408, "slow", f"the body did not arrive within {self.limits.patience:g} seconds") from None
        if len(body) != size:
            more = "more than " if len(body) > size else ""
            raise Refused(400, "length", f"the shape says {size} bytes, the body has {more}{min(size, len(body))}")
        return body


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


async def _no_such_thing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    there = "GET /describe, POST /ask, GET /count"
    said = f"{request.method} {request.url.path[:80]}: there are {there}"
    return Refused(error.status_code, "address", said, headers=error.headers).response()


def server_of(service: Service) -> uvicorn.Server:
    """A server for ``run(sockets=[...])``; at SIGINT or SIGTERM it ends after answering the queries in flight."""
    connections = Connections(service.limits, service.log)
    config = uvicorn.Config(
        service.app(),
        http=partial(Connection, connections),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP,
        timeout_graceful_shutdown=30,
    )
    return uvicorn.Server(config)
