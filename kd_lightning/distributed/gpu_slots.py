"""Helpers of the slot launcher: GPUs and threads per job, quoting, job folders, and ending jobs.

Every ``kd-lightning`` command loads the launcher, so nothing slow is imported here.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.types import Quote, QuotedString

log = logging.getLogger(__name__)

# Seconds that an interrupted job has to write its checkpoint before it is killed.
STOP_SECONDS = 30.0


PARENT = "KD_PARENT"
"""Variable with the pipe whose closing tells a rank or job that its parent has ended."""


class Process(Protocol):
    """What the launcher asks of a job's process: :class:`subprocess.Popen` answers it."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""

    def wait(self) -> int:
        """Wait for the end."""


@dataclass
class Job:
    """One process of a sweep.

    Attributes:
        label: the overrides in which the sweep's jobs differ.
        status: ``waiting``, ``running``, ``ok``, ``failed`` or ``stopped``.
    """

    number: int
    overrides: list[str]
    folder: Path
    label: str
    status: str = "waiting"
    slot: str = ""
    process: Process | None = None
    started: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)


def visible_slots() -> list[str]:
    """One slot per visible GPU, or one for the CPU; found without importing torch, which is slow."""
    allowed = _allowed()
    return (_installed() if allowed is None else allowed) or [""]


def missing_gpus(slots: Sequence[str]) -> str:
    """A message about GPUs named by slots that do not exist here; empty if all exist or the driver is silent."""
    wanted = {gpu.strip(): None for slot in slots for gpu in slot.split(",") if gpu.strip() not in ("", "-1")}
    allowed = _allowed()
    if allowed is not None:
        gone = [gpu for gpu in wanted if gpu not in allowed]
        there = f"CUDA_VISIBLE_DEVICES={','.join(allowed)} allows {', '.join(allowed) or 'none'}"
    elif (installed := _installed()) or not Path("/dev/kfd").exists():  # not for AMD's, which nvidia-smi does not list
        gone = [gpu for gpu in wanted if gpu.isdecimal() and gpu not in installed]
        there = f"this machine has GPUs {', '.join(installed)}" if installed else "this machine has no GPU"
    else:
        return ""
    return f'there is no GPU {", ".join(gone)}: {there}. Name those, or "" for the CPU' if gone else ""


def _allowed() -> list[str] | None:
    """The GPUs that the environment allows; None if it does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    return [gpu for gpu in map(str.strip, visible.split(",")) if gpu not in ("", "-1")]


def _installed() -> list[str]:
    """The numbers of the GPUs that the driver lists."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]


def threads_per_job(slots: int) -> int:
    """An equal share of the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // slots)


def quoted(text: str) -> str:
    """``text`` quoted so that Hydra's grammar reads it back unchanged, with any commas, blanks or =."""
    return QuotedString(text=text.replace("${", r"\${"), quote=Quote.double).with_quotes()


def resume_override(sweep_dir: Path) -> str:
    """The override, quoted for a shell, that resumes a sweep."""
    plain = re.fullmatch(r"[\w./-]+", str(sweep_dir))
    return shlex.quote(f"sweep.resume={sweep_dir if plain else quoted(str(sweep_dir))}")


def signal_group(job: Job, which: signal.Signals) -> None:
    """Send a signal to a job and all its children."""
    if job.process is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(job.process.pid, which)


def last_word(job: Job, reason: str) -> None:
    """Append to a job's log why it was ended; reports quote the last line."""
    with open(job.folder / "console.log", "a") as console:
        console.write(f"\n{reason}\n")


def stop(jobs: Collection[Job]) -> None:
    """Interrupt jobs as Ctrl-C would, and kill them after a time limit or a second Ctrl-C."""
    for job in jobs:
        signal_group(job, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    try:
        while time.monotonic() < deadline and any(job.process and job.process.poll() is None for job in jobs):
            time.sleep(0.05)
    except KeyboardInterrupt:
        log.info("killing the running jobs")
    finally:
        for job in jobs:
            signal_group(job, signal.SIGKILL)
            if job.process is not None:
                job.process.wait()
            if not (job.folder / "result.json").exists():
                last_word(job, "interrupted")


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C, so that no job stays on a GPU however a sweep ends.

    A wrapper may forward a Ctrl-C that the terminal sent to all: another signal within a second is ignored.
    """
    latest = -math.inf

    def interrupt(*_: Any) -> None:
        nonlocal latest
        before, latest = latest, time.monotonic()
        if latest - before > 1:
            raise KeyboardInterrupt

    kept = {}
    if threading.current_thread() is threading.main_thread():
        for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(which) is not signal.SIG_IGN:
                kept[which] = signal.signal(which, interrupt)
    try:
        yield
    finally:
        for which, handler in kept.items():
            signal.signal(which, handler)
