"""A second process that runs the same command and trains its controls, while the first trains teacher and student.

Both keep what they train in the same store, where a lock makes each fit only once: the second process takes the
controls from the first on, the first, when it comes to them, from the last. Imports no torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from kd_lightning.distributed.gpu_slots import PARENT

BESIDE = "KD_BESIDE"
"""Variable that tells a process that it is the second one."""
PATIENCE = 20.0
"""Seconds that it has to write a checkpoint after Ctrl-C."""


def is_beside(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the second one."""
    return BESIDE in environment


class Beside:
    """The second process, which ends with the ``with`` block: by Ctrl-C, with a checkpoint, if the block does.

    Args:
        command: its words.
        names: of the controls, whose progress is shown once :meth:`tell` was called.
    """

    def __init__(self, command: Sequence[str], names: Collection[str]) -> None:
        self.command, self.names = command, tuple(f"{name}: " for name in names)
        self._process: subprocess.Popen[str] | None = None
        self._pipe: int | None = None
        self._said: list[str] = []
        self._tells, self._turn = False, threading.Lock()
        self._reader = threading.Thread(target=self._relay, daemon=True)

    def __enter__(self) -> Beside:
        return self

    def begin(self) -> None:
        """Start it; a process that cannot be started leaves its work to the first."""
        theirs, self._pipe = os.pipe()
        with suppress(OSError):
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, BESIDE: "1", PARENT: str(theirs)},
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,  # the terminal's Ctrl-C reaches only the first
            )
            self._reader.start()
        os.close(theirs)

    def tell(self) -> None:
        """Show how its fits went until now, and how they go on."""
        with self._turn:
            self._tells = True
            self._show()

    @contextmanager
    def waiting(self, _: object = None) -> Iterator[None]:
        """Show how its fits go while the first process waits for one."""
        before = self._tells
        self.tell()
        yield
        with self._turn:
            self._tells = before

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._turn:
            self._tells = False
        if self._process is not None:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self._signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(PATIENCE)
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._reader.join()
        if self._pipe is not None:
            os.close(self._pipe)

    def _signal(self, which: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, which)

    def _relay(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                if line.startswith(self.names):
                    with self._turn:
                        self._said.append(line)
                        if self._tells:
                            self._show()

    def _show(self) -> None:
        sys.stderr.writelines(self._said)
        sys.stderr.flush()
        self._said.clear()
