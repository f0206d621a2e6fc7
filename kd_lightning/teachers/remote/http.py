"""Queries a teacher over HTTP, one attempt per call; see ``protocol`` for the format. ``kd-serve`` is the server."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import threading
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from kd_lightning.core.extras import install
from kd_lightning.errors import ConfigError, TeacherError, UserError
from kd_lightning.teachers.answer_types import Answer, Busy, Closed, Described, Unanswered, Unclear, Unfit
from kd_lightning.teachers.remote import protocol as wire

MOST_BYTES = 64_000_000
"""Largest answer, in bytes."""
OPEN = 1000
"""Number of unanswered queries whose IDs are remembered."""
NO_CREDIT = re.compile(r"insufficient|credit|billing|payment", re.IGNORECASE)


class HttpTeacher:
    """Queries the service at ``url``; safe to use from several threads.

    A query without a clear outcome keeps its ID: when the same images are sent again, a service that has answered them
    already repeats the answer and does not count it twice.

    Args:
        url: such as ``http://127.0.0.1:8100``.
        key_env: name of the environment variable that holds the key; read for every query and never stored.
        timeout: seconds until a query counts as lost.

    Raises:
        ConfigError: the URL is invalid, a key was given instead of a name, or the timeout is not positive.
    """

    _transport: Any = None  # None for httpx's own; tests replace it

    def __init__(self, url: str, *, key_env: str | None = None, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("teacher.client.url: expected an address such as http://127.0.0.1:8100")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "teacher.client.url: expected only an address: a key goes into an environment variable, "
                "which teacher.client.key_env names"
            )
        if key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", key_env):
            raise ConfigError(
                "teacher.client.key_env: expected the NAME of an environment variable, in capital letters, not a key"
            )
        if not timeout > 0:
            raise ConfigError(f"teacher.client.timeout={timeout}: expected seconds, more than 0")
        self.url, self.key_env, self.timeout = url.rstrip("/"), key_env, timeout
        self._lock = threading.Lock()
        self._client: Any = None
        self._described: Described | None = None
        self._over: str | None = None
        self._open: OrderedDict[bytes, str] = OrderedDict()

    def describe(self) -> Described:
        """The service's description of itself, requested once.

        Raises:
            TeacherError: it cannot be reached, refuses the key, or is no such service.
        """
        try:
            return self._introduced()
        except Unanswered as error:
            raise TeacherError(f"teacher.client.url={self.url}: {error}. Is kd-serve running there?") from None

    def _introduced(self) -> Described:
        with self._lock:
            if self._described is None:
                try:
                    status, headers, body = self._send("GET", "/describe")
                except Unclear as error:
                    raise Busy(str(error), error.retry_after) from None  # a description costs nothing
                if status != 200:
                    refused = self._refusal(status, headers, body)
                    if isinstance(refused, Busy | Unclear):
                        raise Busy(str(refused), refused.retry_after)
                    raise Closed(str(refused))
                try:
                    self._described = wire.described_in(wire.parsed(body))
                except wire.Malformed as error:
                    raise Closed(f"it does not describe itself as a teacher ({error})") from None
            return self._described

    def ask(self, images: np.ndarray) -> list[Answer]:
        """Answers to images uint8 (N, H, W, C); raises what ``TeacherClient.ask`` lists."""
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"expected uint8 (N, H, W, C), got {images.dtype} {images.shape}")
        teacher = self._introduced()
        if self._over:
            raise Closed(self._over)
        if teacher.image is not None and images.shape[1:] != teacher.image:
            given, taken = ("x".join(map(str, shape)) for shape in (images.shape[1:], teacher.image))
            raise Closed(f"{teacher.name} takes images of {taken}, these are {given}: set data.size and data.channels")
        pixels = np.ascontiguousarray(images).tobytes()
        question = hashlib.sha256(f"{images.shape}".encode() + pixels).digest()
        headers = {
            "Content-Type": wire.content_type(images.shape),
            "If-Match": f'"{teacher.version}"',
            "Idempotency-Key": self._identity(question),
        }
        try:
            status, received, body = self._send("POST", "/ask", pixels, headers)
            if status != 200:
                raise self._refusal(status, received, body)
            answers = self._answers(body, teacher, len(images))
        except Unclear:
            raise
        except Unanswered:
            self._forget(question)
            raise
        self._forget(question)
        return answers

    def _answers(self, body: bytes, teacher: Described, n: int) -> list[Answer]:
        try:
            found = wire.parsed(body)
            for name in ("name", "version", "access"):
                if found.get(name) != getattr(teacher, name):
                    was = f"{name} was {getattr(teacher, name)}, is {found.get(name)!r:.80}"
                    self._over = f"the teacher at {self.url} has changed ({was})"
                    raise Unclear(self._over)  # not Closed yet: this query may have been counted
            return wire.answers_in(found, teacher, n)
        except wire.Malformed as error:
            raise Unclear(f"an invalid answer: {error}") from None

    def _identity(self, question: bytes) -> str:
        with self._lock:
            identity = self._open.setdefault(question, uuid.uuid4().hex)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
            return identity

    def _forget(self, question: bytes) -> None:
        with self._lock:
            self._open.pop(question, None)

    def _send(
        self, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request; returns status, headers and body of the response.

        Raises:
            Busy: nothing was sent.
            Unclear: it was sent, perhaps in part, and no complete response came back.
            Closed: it cannot be sent at all.
        """
        client, httpx = self._connected()
        until = time.monotonic() + self.timeout
        body = bytearray()
        try:
            with client.stream(
                method, self.url + path, content=content, headers=headers, auth=self._with_key
            ) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MOST_BYTES or time.monotonic() > until:
                        raise Unclear(f"an answer without an end: {len(body)} bytes within {self.timeout:g} seconds")
                return response.status_code, response.headers, bytes(body)
        # not chained: these errors hold the request, whose headers hold the key
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
            raise Busy(f"no connection ({self._said(error)})") from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise Closed(f"it cannot be queried ({self._said(error)})") from None
        except httpx.HTTPError as error:
            raise Unclear(f"no answer ({self._said(error)})") from None

    def _connected(self) -> tuple[Any, Any]:
        try:
            import httpx
        except ImportError:
            raise UserError(f"querying over HTTP needs httpx: {install('http')}") from None
        if self._client is None:
            self._client = httpx.Client(
                timeout=httpx.Timeout(self.timeout, connect=min(10.0, self.timeout)),
                trust_env=not _is_loopback(self.url),  # no proxy for this machine
                transport=self._transport,
                headers={"Accept": "application/json", "User-Agent": "kd-lightning"},
            )
            weakref.finalize(self, self._client.close)
        return self._client, httpx

    def _with_key(self, request: Any) -> Any:
        if self.key_env is not None:
            key = self._key()
            if not key:
                raise Closed(f"the environment variable {self.key_env}, which key_env names, is not set")
            if not re.fullmatch(r"[\x21-\x7e]+", key):
                raise Closed(f"the key in {self.key_env} holds a blank or a letter that HTTP does not carry")
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _key(self) -> str:
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""

    def _said(self, what: object) -> str:
        """A reason in one line, with the key masked."""
        text = re.sub(r"\s+", " ", str(what)).strip()[:300] or type(what).__name__
        return text.replace(key, "***") if (key := self._key()) else text

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Busy | Unclear | Unfit | Closed:
        """The error that a status other than 200 stands for."""
        try:
            error = wire.parsed(body).get("error")
        except wire.Malformed:
            error = None
        told: Mapping[str, Any] = error if isinstance(error, Mapping) else {}
        text = body.decode(errors="replace")
        reason = self._said(f"{status}: {told.get('reason') or told.get('message') or text}")
        after = _seconds(headers)
        if status in (408, 425):
            return Busy(reason, after)
        if status == 429:
            return Closed(reason) if NO_CREDIT.search(text) else Busy(reason, after, limited=True)
        if status in (400, 413, 415, 422):
            return Unfit(reason)
        if status == 412:
            return Closed(f"the teacher at {self.url} has changed: {reason}")
        if 300 <= status < 500:
            return Closed(reason)
        return Busy(reason, after) if told.get("counted") is False else Unclear(reason, after)


def _seconds(headers: Mapping[str, str]) -> float | None:
    """``Retry-After`` in seconds, from a number or a date; None if it is missing or invalid."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    try:
        then = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers["Date"]).timestamp() if "Date" in headers else time.time()
        return max(0.0, then.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
