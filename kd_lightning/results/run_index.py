"""Reads run folders, finished or not, and groups them by their settings."""

from __future__ import annotations

import itertools
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from kd_lightning.core import strangers
from kd_lightning.core.file_format import refuse_format
from kd_lightning.errors import UserError
from kd_lightning.results.run_lock import is_running

NOTHING = "–"
SEEDS = ("seed", "teacher.seed", "source.seed")

# Overrides that say where, when or how often a run happens, not what it does.
_NO_SETTING = re.compile(r"(hydra|artifacts|sweep|logger)([./].*)?|seed|(teacher|source)\.seed")


class Stat(NamedTuple):
    """Mean and sample standard deviation (n - 1) of one metric over ``n`` runs; ``std`` is None for n = 1."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        """The statistics of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass
class Run:
    """One run folder.

    Attributes:
        settings: the overrides it was started with, key to text; the last of a key wins.
        result: content of its result.json; empty if there is no valid one.
        status: ``ok``, ``failed``, ``stopped``, ``running`` (a process holds its lock), ``unfinished`` (no result.json
            and no process) or ``unreadable``.
        reason: one line, empty if all is well.
    """

    folder: Path
    settings: dict[str, str]
    result: dict[str, Any]
    status: str
    reason: str = ""

    @cached_property
    def config(self) -> Any:
        """The saved configuration, including values that no override set; interpolations are not resolved."""
        return load_yaml(self.folder / ".hydra" / "config.yaml")

    @cached_property
    def choices(self) -> Any:
        """Hydra's record of the member chosen of each group."""
        return pick(load_yaml(self.folder / ".hydra" / "hydra.yaml"), "hydra", "runtime", "choices")

    def setting(self, key: str) -> str:
        """The value of ``key``, by override or by default; numbers in a canonical form."""
        value = self.settings.get(key)
        if value is None:
            value = pick(self.choices, key)
            value = pick(self.config, *key.split(".")) if value is None else value
        if str(value) in ("True", "False"):  # a bool, or as Hydra spells one in a job's overrides
            return str(value).lower()
        try:
            return f"{float(str(value)):.12g}"
        except ValueError:
            return NOTHING if str(value) in ("None", "null", "") or isinstance(value, dict | list) else str(value)

    def metric(self, key: str) -> float | None:
        """A metric of the result, or None if it was not measured."""
        return (self.result.get("metrics") or {}).get(key)


@dataclass
class Group:
    """Runs with the same settings; the finished ones differ only in their seeds."""

    settings: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)

    def stat(self, key: str) -> Stat | None:
        """Mean and spread of one metric over the finished runs that have it."""
        values = [value for run in self.runs if (value := run.metric(key)) is not None]
        return Stat.of(values) if values else None

    def cost(self, *path: str) -> float | None:
        """Mean over the runs of one entry of ``cost``."""
        values = [value for run in self.runs if (value := _number(pick(run.result, "cost", *path))) is not None]
        return statistics.fmean(values) if values else None

    def paper(self, key: str) -> float | None:
        """The paper's number for a metric, if a result names one."""
        values = (_number(pick(run.result, "paper", key)) for run in self.runs)
        return next((value for value in values if value is not None), None)


def pick(result: Any, *path: str) -> Any:
    """Look up a path in nested mappings; None if it ends early."""
    for key in path:
        result = result.get(key) if isinstance(result, Mapping) else None
    return result


def load_yaml(path: Path) -> Any:
    """Plain data from a YAML file, None where it cannot be read."""
    try:
        return strangers.read_yaml(path)
    except UserError:
        return None


def read_overrides(folder: Path) -> list[str] | None:
    """The overrides that a run folder was started with, or None if they cannot be read."""
    overrides = load_yaml(folder / ".hydra" / "overrides.yaml")
    return [str(entry) for entry in overrides] if isinstance(overrides, list) else None


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a run's result.json.

    Raises:
        VersionError: it has another format version.
        UserError: it is incomplete, or not a result of this package.
        FileNotFoundError: there is none.
    """
    path = folder / "result.json"
    if not os.path.lexists(path):
        raise FileNotFoundError(path)
    result = strangers.read_json(path, advice="it is perhaps half-written, copy it again")
    version = pick(result, "format_version")
    if not isinstance(version, int):
        raise UserError(f"{path} is not a result of kd_lightning")
    refuse_format(version, path, "run it anew, into a folder of its own")
    if result.get("status") not in ("ok", "failed", "stopped"):
        raise UserError(f"{path} is not a result of kd_lightning")
    if odd := _odd_entry(result):
        raise UserError(f"{path} is not a result of kd_lightning: {odd} is of another kind")
    return result


def _odd_entry(result: Mapping[str, Any]) -> str:
    """The first entry of a result that has the wrong type; empty if there is none."""
    for key in ("metrics", "cost", "paper", "task", "ended_by"):
        if not isinstance(result.get(key) or {}, dict):
            return key
    for key, value in (result.get("metrics") or {}).items():
        if value is not None and _number(value) is None:
            return f"metrics.{key}"
    for key, at in (result.get("ended_by") or {}).items():
        if not all(type(pick(at, name)) is int for name in ("round", "of")):
            return f"ended_by.{key}"
    if not isinstance(pick(result, "task", "unit") or "", str):
        return "task.unit"
    return next((key for key in ("system", "data", "method", "seed") if isinstance(result.get(key), dict | list)), "")


def _number(value: Any) -> float | None:
    """The number itself; None for anything else."""
    return value if type(value) is float or (type(value) is int and abs(value) < 2**63) else None


def last_line(log: Path) -> str:
    """The last line that a job printed, without Hydra's hint on full traces; empty if there is none."""
    try:
        lines = strangers.read_text(log, strangers.MOST_TABLE, errors="replace").splitlines()
    except (OSError, ValueError):
        return ""
    said = (line.strip() for line in reversed(lines))
    return next((line for line in said if line and "HYDRA_FULL_ERROR" not in line), "")


def read_run(folder: Path) -> Run:
    """Read one run folder; any defect becomes its status and reason."""
    overrides = read_overrides(folder)
    pairs = (entry.lstrip("+").partition("=") for entry in overrides or ())
    settings = {key: value.strip("'\"") for key, _, value in pairs}
    if is_running(folder):
        return Run(folder, settings, {}, "running", last_line(folder / "console.log"))
    try:
        result = read_result(folder)
    except UserError as error:
        return Run(folder, settings, {}, "unreadable", str(error))
    except FileNotFoundError:
        reason = last_line(folder / "console.log") or "no result.json: it was killed"
        return Run(folder, settings, {}, "unfinished", reason)
    if overrides is None:
        reason = f"{folder / 'result.json'} has no readable .hydra/overrides.yaml beside it"
        return Run(folder, settings, {}, "unreadable", reason)
    reason = "" if result["status"] == "ok" else str(result.get("reason") or result["status"])
    return Run(folder, settings, result, result["status"], " ".join(reason.split()))


def _run_folders(top: Path) -> Iterator[Path]:
    for folder, inside, files in os.walk(top):
        if "result.json" in files or (Path(folder) / ".hydra" / "overrides.yaml").is_file():
            yield Path(folder)
        inside[:] = [name for name in inside if not name.startswith(".")]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def collect(paths: Iterable[str | Path]) -> list[Run]:
    """All runs in and under ``paths``, each once, in natural order within a path.

    Raises:
        UserError: a path is not a folder, or holds no run.
    """
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: give a run folder, or one that holds runs")
        found = sorted(_run_folders(path), key=_natural)
        if not found:
            raise UserError(f"no run in {path}: there is neither a result.json nor a .hydra/overrides.yaml")
        for folder in found:
            runs.setdefault(folder.resolve(), read_run(folder))
    return list(runs.values())


def seeds_of(run: Run) -> tuple[str, ...]:
    """The values of ``SEEDS`` in a run, as text."""
    first = str(run.result.get("seed", run.settings.get("seed", NOTHING)))
    others = ({NOTHING: "0", "${seed}": first}.get(seed, seed) for seed in map(run.setting, SEEDS[1:]))
    return first, *others


def group(runs: Sequence[Run]) -> list[Group]:
    """Group runs by the settings that vary among them.

    Of runs with the same settings *and* the same seeds only the newest counts: copies would distort n and std.
    """
    known = [run for run in runs if run.status not in ("running", "unreadable")]
    keys = dict.fromkeys(key for run in known for key in run.settings if not _NO_SETTING.fullmatch(key))
    varying = [key for key in keys if len({run.setting(key) for run in known}) > 1]
    groups: dict[tuple[str, ...], Group] = {}
    for run in known:
        settings = {key: run.setting(key) for key in varying}
        if not varying:
            settings = {key: str(run.result[key]) for key in ("system", "data") if key in run.result}
        at = groups.setdefault(tuple(run.setting(key) for key in varying), Group(settings))
        at.settings = at.settings or settings
        (at.runs if run.status == "ok" else at.failed).append(run)
    for at in groups.values():
        by_age = sorted(at.runs, key=lambda run: (run.folder / "result.json").stat().st_mtime)
        newest = list({seeds_of(run): run for run in by_age}.values())
        at.runs = [run for run in at.runs if run in newest]
    return list(groups.values())


def job_numbers(sweep_dir: Path, jobs: Sequence[Sequence[str]], first: int) -> list[int]:
    """The folder number of each job in a resumed sweep.

    A job keeps the folder with its overrides; a new one gets its position or, if other overrides have that folder, a
    number after all others.
    """
    folders = [folder for folder in sweep_dir.iterdir() if folder.name.isdigit()]
    found = {int(folder.name): read_overrides(folder) for folder in folders}
    taken = {number for number, overrides in found.items() if overrides is not None}
    known = {tuple(found[number] or ()): number for number in sorted(taken, reverse=True)}
    beyond = itertools.count(max([first + len(jobs) - 1, *taken]) + 1)
    chosen = []
    for position, overrides in enumerate(jobs, start=first):
        number = known.pop(tuple(overrides), None)
        if number is None:
            number = next(beyond) if position in taken else position
        chosen.append(number)
    return chosen
