"""The connections of the service: their number, and timeouts for each."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from kd_lightning.cli.serve.limits import Limits, Refused

KEEP = 60
"""Seconds that an idle connection stays open: longer than in clients, which might else use a closed one."""
BACKLOG = 32
"""Connections that are accepted in one step of the event loop."""
EVERY = 60.0
"""Seconds between two lines about refused connections."""


class Log:
    """Prints at most one line a minute on standard error.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.unsaid, self.next = clock, 0, -float("inf")

    def say(self, what: str) -> None:
        """Print a line with the number of suppressed ones before it, or suppress it."""
        if self.clock() < self.next:
            self.unsaid += 1
            return
        more = f" ({self.unsaid} more in the last {EVERY:g} seconds)" if self.unsaid else ""
        print(f"kd-serve: {what}{more}", file=sys.stderr, flush=True)
        self.unsaid, self.next = 0, self.clock() + EVERY

    def error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an exception of the event loop in one line instead of a traceback."""
        error = context.get("exception")
        self.say(f"{context['message']}{f' ({error})' if error else ''}")


class Connections:
    """The open connections, oldest first.

    If there is no room for a new one, the oldest that has sent no query yet, or no valid key, is closed.

    Args:
        limits: numbers in total and per address, and timeouts.
        log: for refused connections.
    """

    def __init__(self, limits: Limits, log: Log) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = limits.connections if files == resource.RLIM_INFINITY else min(limits.connections, files // 2)
        self.most, self.of_one = most, limits.connections_per_address
        self.patience, self.log = limits.patience, log
        self.open: dict[Connection, None] = {}
        self.leaving: set[Connection] = set()

    def admit(self, new: Connection) -> bool:
        """Add a connection, after closing an idle one if necessary; False if there is no room."""
        of_one = [one for one in self.open if one.address == new.address]
        for there, most, whose in ((of_one, self.of_one, f" of {new.address}"), ([*self.open], self.most, "")):
            if len(there) >= most:
                idle = next((one for one in there if one.gives_way), None)
                loser = idle or new
                loser.end(503, "busy", f"{most} connections{whose} are open", after=1)
                if idle is None:
                    return False
        self.open[new] = None
        return True


class Connection(H11Protocol):
    """One connection: timeouts for head, body and the reading of the answer, each with an error response."""

    def __init__(self, gate: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.gate = gate
        self.address = ""
        self.gives_way, self.ended = True, False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the first head, or refuse the connection."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if self.gate.admit(self):
            self._within("head", self.gate.patience)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeouts and forget the connection."""
        for name in list(self._timers):
            self._cancel(name)
        self.gate.open.pop(self, None)
        self.gate.leaving.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a new head starts a timeout, and a complete one ends it."""
        if self.ended:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # the head is complete; Service times the body
            self._asked()
        elif self.conn.their_state is h11.IDLE and "head" not in self._timers:
            self._within("head", self.gate.patience)

    def on_response_complete(self) -> None:
        """Start the timeout for the next query, or for the rest of an unread body."""
        before = self.cycle
        super().on_response_complete()
        if self.cycle is not before:
            self._asked()
        elif not self.ended:
            known = before.scope["state"].get("known", False)
            whole = self.conn.their_state in (h11.IDLE, h11.DONE)  # else the rest of its body is still to come
            self.gives_way = not known
            self._within("rest", KEEP + self.gate.patience if known and whole else self.gate.patience)

    def pause_writing(self) -> None:
        """Start the timeout of an answer that the client does not read."""
        super().pause_writing()
        self._within("answer", self.gate.patience)

    def resume_writing(self) -> None:
        """End it: the client reads again."""
        super().resume_writing()
        self._cancel("answer")

    def end(self, status: int, code: str, reason: str, after: float | None = None) -> None:
        """Send an error response if no answer has begun, and give the client a second to close."""
        self.ended = True
        for name in list(self._timers):
            self._cancel(name)
        self.gate.log.say(f"refused {self.address}: {reason}")
        self.gate.open.pop(self, None)
        begun = self.cycle is not None and self.conn.our_state is not h11.IDLE
        if begun or self.transport.is_closing() or len(self.gate.leaving) >= BACKLOG:
            self.transport.abort()
            return
        response = Refused(status, code, reason, after, {"Connection": "close"}).response()
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        head += [b"%b: %b" % pair for pair in response.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self.transport.write_eof()  # closing now would discard the response while the client still sends
        self.gate.leaving.add(self)
        self._within("end", 1.0)

    def _asked(self) -> None:
        self.gives_way = False
        self._cancel("head")
        self._cancel("rest")

    def _within(self, name: str, seconds: float) -> None:
        self._cancel(name)
        self._timers[name] = self.loop.call_later(seconds, self._too_slow, name)

    def _cancel(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _too_slow(self, name: str) -> None:
        del self._timers[name]
        if name == "end":
            self.transport.abort()
            return
        what = {"head": "a query", "rest": "the rest of one, or another one", "answer": "the reading of an answer"}
        self.end(408, "slow", f"{what[name]} took longer than {self.gate.patience:g} seconds")
