"""Hydra sweeper ``race``: many methods get a slice of time, the better half of them a longer one, until one is left.

Successive halving (Jamieson and Talwalkar, AISTATS 2016) of methods: every slice goes on from the checkpoint of the
one before. Every ``kd-lightning`` command imports this file, so it imports nothing heavy; see kd_slots.
"""

import shlex
import signal
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.kd_slots import SlotLauncher, SweepError
from omegaconf import DictConfig

from kd_lightning.distributed.gpu_slots import STOP_SECONDS, Job, signal_group


class RaceLauncher(SlotLauncher):
    """Runs jobs for a slice of time each."""

    seconds, grace = 0.0, 0.0

    def begin(self, folder: Path) -> None:
        """Write to this folder from now on."""
        self.sweep_dir = folder
        folder.mkdir(parents=True, exist_ok=True)

    def slice(self, jobs: Sequence[Job], seconds: float) -> None:
        """Run each job until its student has learnt for so many seconds."""
        self.seconds = seconds
        with self.piped():
            self._run(jobs)

    def _environment(self) -> dict[str, str]:
        from kd_lightning.engine.slices import SLICE

        return super()._environment() | {SLICE: str(self.seconds)}

    def _watch(self, running: Collection[Job]) -> None:
        for job in running:
            late = time.monotonic() - job.started - 2 * self.seconds - self.grace
            if self.seconds and late > STOP_SECONDS:
                signal_group(job, signal.SIGKILL)
            elif self.seconds and late > 0 and job.status == "running":
                signal_group(job, signal.SIGINT)
                job.status = "late"

    def _finish(self, job: Job) -> None:
        job.status = "waiting"

    def _table(self, running: Collection[Job] = (), *, show: bool = False) -> None:
        """The race has its own."""


class RaceSweeper(Sweeper):
    """Runs the race.

    Args:
        minutes: of training; the teacher's and the starts of the jobs come on top.
        among: what competes, each as one would type it.
        grace: seconds beyond twice its slice that a method may take to start and to make its images.
    """

    def __init__(self, minutes: float, among: Sequence[str], grace: float = 60.0) -> None:
        self.minutes, self.among, self.grace = minutes, list(among), grace

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the configuration, and make the launcher."""
        self.config = config
        own = config.hydra.launcher
        if not own._target_.endswith(".SlotLauncher"):
            raise SweepError("sweep=race runs on the slots of this machine: leave hydra/launcher out")
        self.launcher = RaceLauncher(own.slots, own.module, own.warm)
        self.launcher.grace = self.grace
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the race, and print who won and how to go on.

        Raises:
            SystemExit: 2 if the overrides choose a method or nothing can compete, 130 after Ctrl-C.
        """
        from kd_lightning.errors import UserError
        from kd_lightning.planning.race import entrants, race, tell

        given = [word for word in arguments if not word.lstrip("+~").startswith(("sweep=", "sweep.", "hydra"))]
        folder = Path(self.config.hydra.sweep.dir).absolute()
        sources = self.config.hydra.runtime.config_sources
        try:
            among = [shlex.split(words) for words in self.among]
            runners = entrants(given, among, folder, [s.path for s in sources if s.provider == "command-line"])
            tell(race(self.launcher, runners, seconds=60 * self.minutes, folder=folder), given, folder)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("stopped; the same command races on from the checkpoints", file=sys.stderr)
            sys.exit(130)


@dataclass
class RaceConf:
    """The config group entry ``hydra/sweeper=race``."""

    _target_: str = "hydra_plugins.kd_race.RaceSweeper"
    minutes: float = 20.0
    among: tuple[str, ...] = ()
    grace: float = 60.0


ConfigStore.instance().store(group="hydra/sweeper", name="race", node=RaceConf, provider="kd_lightning")
