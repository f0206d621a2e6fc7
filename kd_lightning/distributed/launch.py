"""Starts one process per device of this machine for a command, and supervises them.

All ranks run the same command from its start. If torchrun or SLURM started them, nothing is started. Imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kd_lightning.distributed.gpu_slots import PARENT, interruptible, quoted, threads_per_job

AUTO = ("auto", "-1", -1)
MEETING = "KD_MEETING"
LOST = 3
"""Exit code of a rank that ends because another one ended."""
PATIENCE = 20.0
"""Seconds that ranks have to end by themselves after one has failed, or after Ctrl-C."""
_OURS = ("hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper", "hydra.mode", "hydra.run.")


@dataclass(frozen=True)
class ProcessInfo:
    """Rank of a process among the ``world`` of a run; ``local`` is its rank on this machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.world // self.local_world


@cache
def placed() -> ProcessInfo | None:
    """The place of this process if :func:`start`, torchrun or srun started it as one of several; else None."""
    return place_in(os.environ)  # read only once: Lightning removes WORLD_SIZE after a fit


def place_in(environment: Mapping[str, str]) -> ProcessInfo | None:
    """As :func:`placed`, from a given environment."""

    def number(name: str, default: int = 1) -> int:
        return int(environment.get(name, default))

    if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= environment.keys():
        world = number("WORLD_SIZE")
        place = ProcessInfo(number("RANK"), world, number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE", world))
    elif "SLURM_PROCID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        world, nodes = number("SLURM_NTASKS"), number("SLURM_NNODES")
        place = ProcessInfo(number("SLURM_PROCID"), world, number("SLURM_LOCALID", 0), max(1, world // nodes))
    else:
        return None
    return place if place.world > 1 else None


def wanted(trainer: Mapping[str, Any]) -> int:
    """Ranks per machine that a trainer's settings ask for; 1 if they are invalid, which ``check`` reports."""
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if isinstance(devices, list | tuple):
        return max(1, len(devices))
    if devices in AUTO:
        return max(1, _gpus()) if accelerator in ("auto", "gpu", "cuda") else 1
    if isinstance(devices, str) and "," in devices:
        return sum(bool(part.strip()) for part in devices.split(","))
    try:
        return max(1, int(devices))
    except (TypeError, ValueError):
        return 1


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def stay_with_parent() -> bool:
    """End this rank or job when the command that started it ends; only that command forwards Ctrl-C.

    Returns:
        Whether such a command started it.
    """
    pipe = os.environ.pop(PARENT, None)  # not inherited by this process's children
    if pipe is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits SIG_IGN
        threading.Thread(target=_wait_for_end, args=[int(pipe)], daemon=True).start()
    return pipe is not None


def _wait_for_end(pipe: int) -> None:
    with suppress(OSError):
        os.read(pipe, 1)  # nothing is ever written: returns when the other end closes
        os.killpg(0, signal.SIGKILL)


@dataclass
class Rank:
    """A child process, and what it printed; the first rank prints to the terminal."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, which: signal.Signals) -> None:
        """Send a signal to the rank and all its children."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, which)


def start(hydra: Any, number: int, *, patience: float = PATIENCE) -> tuple[int, str | None]:
    """Run this command on ``number`` ranks of this machine, in one run folder, and wait for them.

    Ctrl-C reaches only the first rank, which ends as a single process would; the others follow.

    Args:
        hydra: the ``hydra`` node of the configuration.
        number: of ranks.
        patience: seconds after which ranks that do not end are killed.

    Returns:
        The exit code, and why the ranks were ended, if the first rank cannot know it.
    """
    with tempfile.TemporaryDirectory(prefix="kd_ranks_") as meeting, interruptible():
        inner, ours = os.pipe()
        ranks: list[Rank] = []
        try:
            ranks += (_started(command_of(hydra), i, number, Path(meeting), inner) for i in range(number))
            return _watch(ranks, patience)
        finally:
            for rank in ranks:
                rank.signal(signal.SIGKILL)
                rank.process.wait()
            os.close(inner)
            os.close(ours)


def _started(command: Sequence[str], i: int, number: int, meeting: Path, pipe: int) -> Rank:
    log = meeting / f"rank{i}.log"
    place = {"RANK": i, "LOCAL_RANK": i, "NODE_RANK": 0, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    environment = {
        "OMP_NUM_THREADS": str(threads_per_job(number)),
        **os.environ,
        **{name: str(value) for name, value in place.items()},
        MEETING: str(meeting / "store"),
        PARENT: str(pipe),
    }
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[pipe],
            stdin=subprocess.DEVNULL,
            stdout=None if i == 0 else said,
            stderr=None if i == 0 else said,
            process_group=0,  # the terminal's Ctrl-C reaches only the parent
        )
    return Rank(i, process, log)


def command_of(hydra: Any) -> list[str]:
    """The command line that runs this job as a single run in the same folder, where its configuration is written."""
    flags = {"main": "--config-path", "command-line": "--config-dir"}
    command = [sys.executable, "-m", "kd_lightning.cli.main"]
    for source in hydra.runtime.config_sources:
        if source.provider in flags and source.schema == "file":
            command += [flags[source.provider], source.path]
    kept = [o for o in hydra.overrides.hydra if not o.lstrip("+~").startswith((*_OURS, "hydra.output_subdir"))]
    at = ["hydra.mode=RUN", f"hydra.run.dir={quoted(hydra.runtime.output_dir)}", "hydra.output_subdir=null"]
    return [*command, "--config-name", hydra.job.config_name, *hydra.overrides.task, *kept, *at]


def _watch(ranks: list[Rank], patience: float) -> tuple[int, str | None]:
    failed: list[Rank] = []
    stopped, deadline = False, float("inf")
    while any(rank.process.poll() is None for rank in ranks):
        failed += [rank for rank in ranks if rank.process.poll() and rank not in failed]
        if failed:
            deadline = min(deadline, time.monotonic() + patience)
        try:
            time.sleep(0.05)
            if time.monotonic() > deadline or (stopped and ranks[0].process.poll() is not None):
                break
        except KeyboardInterrupt:
            if stopped:
                break
            stopped, deadline = True, time.monotonic() + patience
            ranks[0].signal(signal.SIGINT)
    if stopped and ranks[0].process.returncode != 0:
        return 130, "interrupted; the same command goes on from the last checkpoint"
    failed += [rank for rank in ranks if rank.process.poll() and rank not in failed]
    if not failed or ranks[0].process.returncode == 0:
        return 0, None
    if ranks[0].process.returncode not in (LOST, -signal.SIGKILL):  # it has printed the reason itself
        first = ranks[0]
    else:
        first = next((rank for rank in failed if rank.process.returncode != LOST), failed[0])
    code = first.process.returncode
    if first.number == 0 and code > 0:
        return code, None
    last = first.log.read_text(errors="replace").strip().splitlines()[-20:]
    print(*(f"rank {first.number}: {line}" for line in last), sep="\n", file=sys.stderr)
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    because = f" ({last[-1].removeprefix('error: ')})" if last else ""
    reason = f"rank {first.number} of {len(ranks)} {end}{because}; the same command goes on from the last checkpoint"
    return code if code > 0 else 128 - code, reason


def objective(folder: Path) -> float | None:
    """The objective in the ranks' result."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result["objective"]
