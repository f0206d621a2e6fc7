"""Jobs of a sweep begin as copies of one process that has imported what all of them use, which takes seconds.

``python -m kd_lightning.distributed.warm_jobs MODULE ...`` is that process, with a socket for its standard input. It
computes nothing, so that a copy may choose its device and number of threads, and ends with the command that started it.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from kd_lightning.distributed.gpu_slots import PARENT

HEAD = 8
"""Bytes of a message that tell its length."""
MOST_FILES = 3
"""Files that come with a message: the console, the pipe of the sweep, the mark of a running job."""


class Child:
    """A job as :class:`subprocess.Popen` shows it: ``pid``, ``returncode``, ``poll`` and ``wait``."""

    def __init__(self, pid: int, parent: Warm) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the job runs."""
        if self.returncode is None:
            self._parent.listen(0.0)
            self._look()
        return self.returncode

    def wait(self) -> int:
        """Wait for the end."""
        while self.returncode is None:
            self._parent.listen(0.1)
            self._look()
        return self.returncode

    def _look(self) -> None:
        self.returncode = self._parent.ended.get(self.pid)
        if self.returncode is None and self._parent.gone:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                self.returncode = 0  # nobody knows it any more; what the job has written tells


class Warm:
    """The process whose copies become jobs.

    Args:
        module: what a job runs, as ``python -m`` does.
        imports: modules to import before.
        environment: of the process; each job brings its own.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, module: str, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        self.ended: dict[int, int] = {}
        self.gone = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, module, *imports],
                env=dict(environment),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )

    def start(self, words: Sequence[str], environment: Mapping[str, str], console: int, kept: Sequence[int]) -> Child:
        """Start a job in a process group of its own.

        Args:
            words: of the command, after the module.
            environment: all of the job's.
            console: file to which the job prints.
            kept: files that stay open in it, first the pipe by whose closing it notices that the sweep has ended.

        Raises:
            OSError: the process with the imports has ended.
        """
        text = json.dumps({"words": list(words), "environment": dict(environment), "folder": os.getcwd()}).encode()
        socket.send_fds(self._socket, [len(text).to_bytes(HEAD, "little")], [console, *kept])
        self._socket.sendall(text)
        while True:
            said = self._read()
            if said is None:
                raise OSError("the process with the imports has ended")
            if "started" in said:
                return Child(said["started"], self)
            self.ended[said["pid"]] = said["code"]

    def listen(self, seconds: float) -> None:
        """Note the jobs that have ended; waits at most so long for the first."""
        while not self.gone and select.select([self._socket], [], [], seconds)[0]:
            said = self._read()
            if said is not None:
                self.ended[said["pid"]] = said["code"]
            seconds = 0.0

    def close(self) -> None:
        """End the process, which ends no job."""
        self._socket.close()
        self._process.wait()

    def _read(self) -> dict[str, Any] | None:
        said = None
        with suppress(OSError):
            said = _received(self._socket)
        self.gone = said is None
        return said


def start(
    warm: Warm | None,
    module: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    console: int,
    kept: Sequence[int],
) -> Child | subprocess.Popen[bytes]:
    """Start a job by :meth:`Warm.start`, or from the beginning where there is no such process any more.

    Raises:
        OSError: it cannot be started.
    """
    if warm is not None and not warm.gone:
        with suppress(OSError):
            return warm.start(words, environment, console, kept)
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env=dict(environment),
        pass_fds=kept,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=subprocess.STDOUT,
        process_group=0,
    )


def _received(connection: socket.socket) -> dict[str, Any] | None:
    """The next message, with ``files`` if there came any; None at the end."""
    head, files, _, _ = socket.recv_fds(connection, HEAD, MOST_FILES)
    while 0 < len(head) < HEAD:
        head += connection.recv(HEAD - len(head))
    if not head:
        return None
    text = b""
    while len(text) < int.from_bytes(head, "little"):
        more = connection.recv(int.from_bytes(head, "little") - len(text))
        if not more:
            return None
        text += more
    message: dict[str, Any] = json.loads(text)
    return message | ({"files": files} if files else {})


def _tell(connection: socket.socket, **what: int) -> None:
    text = json.dumps(what).encode()
    connection.sendall(len(text).to_bytes(HEAD, "little") + text)


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answer requests until the sweep ends; returns one in the copy that is to become its job."""
    running = set[int]()
    while True:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                running.discard(found[0])
                _tell(connection, pid=found[0], code=os.waitstatus_to_exitcode(found[1]))
        if not select.select([connection], [], [], 0.05 if running else None)[0]:
            continue
        request = _received(connection)
        if request is None:
            return None
        pid = os.fork()
        if pid == 0:
            connection.close()
            return request
        running.add(pid)
        with suppress(OSError):
            os.setpgid(pid, pid)  # as the copy does: whoever is first
        for file in request["files"]:
            os.close(file)
        _tell(connection, started=pid)


def _become(request: Mapping[str, Any]) -> None:
    """Take over a job's words, environment, folder and files."""
    with suppress(OSError):
        os.setpgid(0, 0)
    console, *kept = request["files"]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[PARENT] = str(kept[0])
    for file in kept:
        os.set_inheritable(file, True)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, place in ((nothing, 0), (console, 1), (console, 2)):
        os.dup2(file, place)
    for file in (nothing, console):
        os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(request["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    if "torch" in sys.modules and (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        sys.modules["torch"].set_num_threads(int(threads))  # OpenMP read the variable when torch was imported


def _main(module: str, *imports: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in imports:
        import_module(name)
    connection = socket.socket(fileno=os.dup(0))
    request = _serve(connection)
    if request is None:
        return
    _become(request)
    sys.argv = [module, *request["words"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
