"""A race of methods: successive halving in slices of time, each going on from the checkpoint of the one before."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tabulate import tabulate

from kd_lightning.config.check import faults
from kd_lightning.config.overrides import read
from kd_lightning.distributed.gpu_slots import Job
from kd_lightning.engine.slices import SLICES
from kd_lightning.errors import ConfigError, UserError
from kd_lightning.results.run_index import read_run
from kd_lightning.store.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORTEST = 5.0
"""Seconds of the shortest slice in which a student can learn anything."""


class Launcher(Protocol):
    """What runs the jobs."""

    slots: Sequence[str]

    def begin(self, folder: Path) -> None:
        """Write to this folder from now on."""

    def slice(self, jobs: Sequence[Job], seconds: float) -> None:
        """Run each job until its student has learnt for so many seconds."""


@dataclass
class Runner:
    """One competitor.

    Args:
        words: the overrides that it stands for.
        job: its job.
        left: why it is no longer in the race.
        slices: what it said at the end of each slice.
    """

    words: list[str]
    job: Job
    left: str = ""
    slices: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its choices of groups."""
        return " ".join(word for word in self.words if "." not in word.partition("=")[0])

    @property
    def worth(self) -> float:
        """Its last score, higher where it is better."""
        if not self.slices:
            return -math.inf
        last = self.slices[-1]
        return float(last["score"] if last["higher_is_better"] else -last["score"])

    @property
    def ended(self) -> bool:
        """Whether its fit has come to its end."""
        return bool(self.slices) and bool(self.slices[-1]["ended"])

    def listen(self) -> None:
        """Read what it said; it leaves the race if it said nothing new."""
        file = self.job.folder / SLICES
        said = json.loads(file.read_text()) if file.is_file() else []
        if len(said) == len(self.slices):
            run = read_run(self.job.folder)
            stopped = "trained no student in twice its slice"
            self.left = stopped if run.status in ("stopped", "unfinished") else f"failed: {run.reason}"
        self.slices = said


def seconds_each(left: float, rungs: int, runners: int, slots: int) -> float:
    """The slice of each runner in the next of ``rungs`` rungs, which have ``left`` seconds in all."""
    return left / rungs / max(1, math.ceil(runners / slots))


def rungs(runners: int) -> int:
    """Number of halvings until one is left."""
    return max(1, math.ceil(math.log2(max(1, runners))))


def entrants(
    given: Sequence[str], among: Sequence[Sequence[str]], folder: Path, config_dirs: Sequence[str] = ()
) -> list[Runner]:
    """Those whose composition can run; says which cannot.

    Args:
        given: the overrides that all share.
        among: the overrides of each competitor.
        folder: of the race.
        config_dirs: further folders of groups.

    Raises:
        ConfigError: the overrides choose a method, or nothing can compete.
    """
    chosen = [word for word in given if word.lstrip("+").partition("=")[0] in ("method", "source")]
    if chosen:
        raise ConfigError(f"{chosen[0]}: sweep=race chooses it; say what competes by sweep.among instead")
    runners: list[Runner] = []
    for words in among:
        overrides = [*(word for word in given if not word.startswith("controls=")), *words, "controls=none"]
        found = read(overrides, config_dirs)
        wrong = found.problems + [f"{key}: no file sets it" for key in found.unset] or faults(found.cfg)
        if wrong:
            print(f"left out, {' '.join(words)}: {wrong[0]}", file=sys.stderr, flush=True)
            continue
        number = len(runners)
        runners.append(Runner(list(words), Job(number, overrides, folder / str(number), " ".join(words))))
    if len(runners) < 2:
        left = f"only {runners[0].name}" if runners else "none"
        raise ConfigError(f"sweep=race: of sweep.among {left} can run with these settings; the reasons stand above")
    return runners


def race(launcher: Launcher, runners: Sequence[Runner], *, seconds: float, folder: Path) -> list[Runner]:
    """Run the rungs.

    Args:
        launcher: runs the jobs.
        runners: what competes.
        seconds: of all slices on each slot together; the teacher's fit and the starts of the jobs come on top.
        folder: of the race.

    Returns:
        All that ran, the best first.

    Raises:
        ConfigError: the time is too short.
        UserError: none has trained a student.
    """
    count, slots = rungs(len(runners)), len(launcher.slots)
    first = seconds_each(seconds, count, len(runners), slots)
    if first < SHORTEST:
        enough = math.ceil(seconds / 60 * SHORTEST / first * 10) / 10
        raise ConfigError(
            f"sweep.minutes={seconds / 60:g}: {len(runners)} methods would get {first:.1f} seconds each at first; "
            f"give sweep.minutes={enough:g} or more, or fewer of sweep.among"
        )
    launcher.begin(folder)
    print(f"{len(runners)} methods, {count} rungs, {seconds / 60:g} minutes: {folder}", flush=True)
    launcher.slice([runner.job for runner in runners], 0.0)  # brings the teachers about, which takes nobody's time
    for runner in runners:
        (runner.job.folder / SLICES).unlink(missing_ok=True)
    racing = list(runners)
    for rung in range(count):
        running = [runner for runner in racing if not runner.ended]
        if not running:
            break
        spent = sum(said["seconds"] for runner in runners for said in runner.slices) / slots
        each = seconds_each(max(0.0, seconds - spent), count - rung, len(running), slots)
        print(f"rung {rung + 1}: {len(running)} methods, {each:.0f} seconds each", flush=True)
        launcher.slice([runner.job for runner in running], each)
        for runner in running:
            runner.listen()
        there = sorted((runner for runner in racing if not runner.left), key=lambda runner: -runner.worth)
        if not there:
            raise UserError(f"sweep=race: none has trained a student; see console.log in the folders of {folder}")
        racing = there[: math.ceil(len(there) / 2)]
        for runner in there[len(racing) :]:
            runner.left = f"left after rung {rung + 1}"
        if len(racing) == 1:
            break
    left = [runner for runner in runners if runner not in racing]
    last = sorted(left, key=lambda runner: (-len(runner.slices), -runner.worth))
    return [*sorted(racing, key=lambda runner: -runner.worth), *last]


def tell(order: Sequence[Runner], given: Sequence[str], folder: Path) -> None:
    """Print the table and how to go on, and write ``race.md`` and ``race.png``."""
    best, most = order[0], max(len(runner.slices) for runner in order)
    head = ["method", *(f"rung {i + 1}" for i in range(most)), "rounds", "seconds", ""]
    rows = [
        [
            runner.name,
            *(f"{said['score']:.4f}" for said in runner.slices),
            *[""] * (most - len(runner.slices)),
            runner.slices[-1]["round"] if runner.slices else "",
            f"{sum(said['seconds'] for said in runner.slices):.0f}",
            "ended" if runner.ended else runner.left,
        ]
        for runner in order
    ]
    command = shlex.join(["kd-lightning", *given, *best.words])
    text = "\n".join(
        [
            tabulate(rows, head, tablefmt="github", disable_numparse=True),
            "",
            f"{best.slices[-1]['judged_by']}; test images were not looked at",
            f"go on with the winner: {command}",
        ]
    )
    with writing(folder):
        (folder / "race.md").write_text(text + "\n")
    print(f"\n{text}", flush=True)
    if (figure := drawn(order)) is not None:
        with writing(folder):
            figure.savefig(folder / "race.png")


def drawn(order: Sequence[Runner]) -> Figure | None:
    """The scores over the seconds of training; None without Matplotlib."""
    try:
        from matplotlib import figure
    except ImportError:
        return None
    page = figure.Figure(figsize=(6.5, 4), layout="constrained", dpi=150)
    axes = page.subplots()
    for runner in order:
        at, score, total = [], [], 0.0
        for said in runner.slices:
            total += said["seconds"]
            at.append(total)
            score.append(said["score"])
        if at:
            axes.plot(at, score, "o-", label=runner.name)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel(order[0].slices[-1]["judged_by"])
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return page
