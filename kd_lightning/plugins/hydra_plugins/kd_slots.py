"""Hydra launcher ``slots``: every job of a sweep is a process of its own on the next free slot.

A slot is what a job finds in CUDA_VISIBLE_DEVICES: ``"0"`` is one GPU, ``"0,1"`` a job on two, ``""`` the
CPU; the same GPU may be named twice, for two jobs on it at a time. A job that raises, is killed or runs out
of memory does not end the others. ``sweep.resume=DIR`` resumes the sweep in that folder.

Every ``kd-lightning`` command imports this file, so it imports nothing heavy. Hydra executes it outside
``sys.modules``, where dataclasses cannot resolve postponed annotations, so it uses none.
"""

import itertools
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from kd_lightning.distributed.gpu_slots import (
    PARENT,
    Job,
    interruptible,
    last_word,
    missing_gpus,
    quoted,
    resume_override,
    signal_group,
    stop,
    threads_per_job,
    visible_slots,
)
from kd_lightning.distributed.job_lines import JobLines
from kd_lightning.distributed.warm_jobs import Warm, start

log = logging.getLogger(__name__)

# Overrides that are not passed on to the jobs: each runs in mode RUN, in its own folder.
_PARENTS = ("hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper", "hydra.mode", "hydra.run.")


# What every run imports; a sweep's jobs start as copies of a process that has done so.
IMPORTS = ("torchmetrics", "lightning", "kd_lightning.cli.summary", "kd_lightning.config.check", "kd_lightning.run.run")


class SweepError(CompactHydraException):
    """Ends the sweep with exit code 1; Hydra prints only the message of such an error."""


class Returned(JobReturn):
    """Raises a failed job's error as it is; Hydra's own adds a line with every override."""

    @property  # type: ignore[misc]
    def return_value(self) -> Any:
        """The job's objective, if it has one."""
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value


class SlotLauncher(Launcher):
    """Runs the jobs of a sweep as processes, one at a time on each slot.

    Args:
        slots: values for CUDA_VISIBLE_DEVICES; None means the visible GPUs.
        module: what ``python -m`` runs for each job; it must accept Hydra's command line, and end with this process by
            ``start.stay_with_parent``.
        warm: import what the jobs share only once, on Linux and where there are more jobs than slots.
    """

    def __init__(self, slots: Sequence[str] | None, module: str, warm: bool = True) -> None:
        self.slots = visible_slots() if slots is None else [str(slot) for slot in slots]
        self.module = module
        self.warm = warm and sys.platform == "linux"
        self.imported: Optional[Warm] = None  # noqa: UP045

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the slots, and set the folder of the sweep that is resumed; raises SweepError if one is wrong."""
        if not self.slots:
            raise SweepError('hydra.launcher.slots is empty: name a GPU such as "0", or "" for the CPU')
        if why := missing_gpus(self.slots):
            raise SweepError(f"hydra.launcher.slots: {why}")
        resume = OmegaConf.select(config, "sweep.resume")
        self.resumes = resume is not None
        if self.resumes:
            folder = Path(str(resume)).expanduser().absolute()
            if not folder.is_dir():
                raise SweepError(f"sweep.resume={resume} is not a folder: give the folder of the sweep to go on with")
            with read_write(config.hydra.sweep):
                config.hydra.sweep.dir = str(folder)
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every job and return the results in the same order, with an error as the objective of a failed job.

        Raises:
            SystemExit: 130, after Ctrl-C.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if not log.hasHandlers():  # with hydra_logging=none a sweep would print nothing until its end
            log.addHandler(logging.StreamHandler(sys.stdout))
            log.setLevel(logging.INFO)
        self.sweep_dir = Path(self.config.hydra.sweep.dir).absolute()
        self.sweep_dir.mkdir(parents=True, exist_ok=True)
        jobs = self._plan(job_overrides, initial_job_idx)
        slots = ", ".join(slot or "cpu" for slot in self.slots)
        log.info("%d jobs on slots [%s], results in %s", len(jobs), slots, self.sweep_dir)
        try:
            with self.piped():
                self._run([job for job in jobs if job.status == "waiting"])
        except KeyboardInterrupt:
            self._table(show=True)
            done = sum(job.status == "ok" for job in jobs)
            message = "stopped with %d of %d jobs done; go on with the same command and %s"
            log.info(message, done, len(jobs), resume_override(self.sweep_dir))
            sys.exit(130)
        self._table(show=True)
        failed = [str(job.number) for job in sorted(jobs, key=lambda job: job.number) if job.status == "failed"]
        message = (
            f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}. Run them again "
            f"with the same command and {resume_override(self.sweep_dir)}"
        )
        # The basic sweeper lets the error end the program; one that searches may catch it and continue.
        basic = self.config.hydra.sweeper._target_.endswith(".BasicSweeper")
        error = SystemExit(message) if basic else SweepError(message)
        return [self._returned(job, error) for job in jobs]

    @contextmanager
    def piped(self) -> Iterator[None]:
        """In this block jobs can run; by the closing of a pipe they notice that it has ended, even by kill -9."""
        self.inner, ours = os.pipe()  # nothing is written to it
        try:
            with interruptible():
                yield
        finally:
            if self.imported is not None:
                self.imported.close()
                self.imported = None
            os.close(self.inner)
            os.close(ours)

    def _plan(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        from kd_lightning.errors import UserError, VersionError
        from kd_lightning.results.run_index import job_numbers, read_result

        cleaned = [[o for o in job if not o.lstrip("+").startswith("sweep.resume=")] for job in job_overrides]
        common = set.intersection(*map(set, cleaned)) if len(cleaned) > 1 else set()
        chosen = job_numbers(self.sweep_dir, cleaned, first) if self.resumes else itertools.count(first)
        jobs = []
        for number, overrides in zip(chosen, cleaned, strict=False):
            label = " ".join(override for override in overrides if override not in common)
            job = Job(number, overrides, self.sweep_dir / str(number), label)
            if self.resumes:
                try:
                    job.result = read_result(job.folder)
                except VersionError as error:  # running it again would overwrite a result of another version
                    raise SweepError(f"sweep.resume: {error}") from error
                except (UserError, FileNotFoundError):
                    job.result = {}
                if job.result.get("status") == "ok":
                    job.status = "ok"
                    log.info("job %d is done already: %s", number, label)
            jobs.append(job)
        return jobs

    def _run(self, jobs: Sequence[Job]) -> None:
        waiting, free, running = deque(jobs), deque(self.slots), list[Job]()
        lines = JobLines()
        if self.warm and len(jobs) > len(self.slots):
            imports = IMPORTS if self.module.startswith("kd_lightning.") else ()
            self.imported = Warm(self.module, imports, self._environment())
        try:
            while waiting or running:
                while waiting and free:
                    lines.clear()
                    job = waiting.popleft()
                    job.slot = free.popleft()
                    running.append(job)
                    self._start(job)
                ended = [job for job in running if job.process and job.process.poll() is not None]
                for job in ended:
                    lines.clear()
                    running.remove(job)
                    free.append(job.slot)
                    self._finish(job)
                    self._table(running)
                self._watch(running)
                if not ended:
                    lines.show(running)
                    time.sleep(0.05)
        except BaseException:
            lines.clear()
            stop(running)
            for job in running:
                job.status = "stopped"
            raise

    def _watch(self, running: Collection[Job]) -> None:
        """Look after the jobs that run, twenty times a second."""

    def _command(self, job: Job) -> list[str]:
        """The words of a job's command: its overrides, and the user's Hydra options for configs and logs."""
        flags = {"main": "--config-path", "command-line": "--config-dir"}
        command = []
        for source in self.config.hydra.runtime.config_sources:
            if source.provider in flags and source.schema == "file":
                command += [flags[source.provider], source.path]
        if self.config.hydra.job.config_name is not None:
            command += ["--config-name", self.config.hydra.job.config_name]
        given = [str(override) for override in self.config.hydra.overrides.hydra]
        kept = [override for override in given if not override.lstrip("+~").startswith(_PARENTS)]
        return [*command, *job.overrides, *kept, "hydra.mode=RUN", f"hydra.run.dir={quoted(str(job.folder))}"]

    def _environment(self) -> dict[str, str]:
        threads = str(threads_per_job(len(self.slots)))
        return {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **os.environ, "KD_SWEEP": self.sweep_dir.name}

    def _start(self, job: Job) -> None:
        environment = self._environment() | {"CUDA_VISIBLE_DEVICES": job.slot, PARENT: str(self.inner)}
        from kd_lightning.results.run_lock import hold

        log.info("job %d on %s: %s", job.number, job.slot or "cpu", job.label)
        try:
            # Written before the job starts, so that a job that dies at once is still counted.
            (job.folder / ".hydra").mkdir(parents=True, exist_ok=True)
            OmegaConf.save(OmegaConf.create(job.overrides), job.folder / ".hydra" / "overrides.yaml")
            (job.folder / "result.json").unlink(missing_ok=True)
            held = hold(job.folder)
            with open(job.folder / "console.log", "wb") as console:
                job.started = time.monotonic()
                kept = [self.inner] if held is None else [self.inner, held]
                # in a process group of its own: Ctrl-C reaches a job and its children once, through stop
                words = self._command(job)
                job.process = start(self.imported, self.module, words, environment, console.fileno(), kept)
        except OSError as error:
            raise SweepError(f"cannot start job {job.number} in {job.folder}: {error}") from error
        if held is not None:
            os.close(held)  # the job's own copy stays open while it runs
        job.status = "running"

    def _finish(self, job: Job) -> None:
        from kd_lightning.results.run_index import read_run
        from kd_lightning.results.run_lock import RUNNING
        from kd_lightning.results.table import headline

        assert job.process is not None
        assert job.process.returncode is not None
        (job.folder / RUNNING).unlink(missing_ok=True)  # a child process of the job may still hold the lock
        code = job.process.returncode
        seconds = time.monotonic() - job.started
        run = read_run(job.folder)
        job.result = run.result
        if code == 0 and run.status == "ok":
            job.status = "ok"
            log.info("job %d done in %.1f s: %s", job.number, seconds, headline(run.result))
            return
        job.status = "failed"
        signal_group(job, signal.SIGKILL)
        reason = run.reason
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                reason += ", as the system does when memory runs out"
        elif code == 0 and run.status == "unfinished":
            reason = "ended without writing result.json"
        elif run.status == "ok":
            reason = f"exit code {code} after its result was written"
        if reason != run.reason:
            last_word(job, reason)
        log.error("job %d failed after %.1f s: %s; see %s", job.number, seconds, reason, job.folder / "console.log")

    def _table(self, running: Collection[Job] = (), *, show: bool = False) -> None:
        """Update the table on disk; an error in it does not end the sweep."""
        from kd_lightning.errors import UserError
        from kd_lightning.results.table import render, write_table

        try:
            table = write_table(self.sweep_dir, [job.folder for job in running])
        except UserError as error:
            log.warning("no table: %s", error)
            return
        if show:
            print(f"\n{render(table)}", flush=True)

    def _returned(self, job: Job, error: BaseException) -> JobReturn:
        status = JobStatus.COMPLETED if job.status == "ok" else JobStatus.FAILED
        objective = job.result.get("objective")
        value = None if objective is None else float(objective)
        return Returned(
            overrides=job.overrides,
            working_dir=str(job.folder),
            status=status,
            _return_value=value if status == JobStatus.COMPLETED else error,
        )


@dataclass
class SlotLauncherConf:
    """The config group entry ``hydra/launcher=slots``."""

    _target_: str = "hydra_plugins.kd_slots.SlotLauncher"
    slots: Optional[list[str]] = None  # noqa: UP045
    module: str = "kd_lightning.cli.main"
    warm: bool = True


ConfigStore.instance().store(group="hydra/launcher", name="slots", node=SlotLauncherConf, provider="kd_lightning")
