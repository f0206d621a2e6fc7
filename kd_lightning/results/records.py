"""Records: one small JSON file per finished run, kept under ``results/``, from which RESULTS.md is written.

``results/TABLE/NAME_s0.json`` holds the run with seed 0 of the row NAME. ``NAME_mean.json`` stands for several runs of
which only the mean is known. A record leaves out what is unknown, and contains no path of a machine.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.results.run_index import Run, Stat, group, pick
from kd_lightning.store.files import writing

VERSION = 1
FIELDS = {
    "record_version": int,
    "source": str,  # "run": written by kd-report --record; "recorded": copied from what was written down of it then
    "date": str,
    "command": str,
    "seed": int,
    "n": int,  # of a mean: runs
    "std": dict,  # of a mean: sample standard deviations, metric by metric
    "seeds": list,  # of a mean: its seeds; of a run: absent
    "teacher_seed": int,
    "source_seed": int,
    "metrics": dict,
    "unit": str,
    "parameters": dict,
    "seconds": dict,
    "updates": int,
    "queries": int,
    "images_synthesised": int,
    "device": str,
    "threads": int,
    "precision": str,
    "versions": dict,
    "git": str,
    "note": str,
}
REQUIRED = ("record_version", "source", "metrics")
_ABSOLUTE = re.compile(r"(?<![\w.])~?/(?:[^\s'\",\]}/]+/)*([^\s'\",\]}/]+)/?")
_OF_THE_MACHINE = re.compile(r"\+*(hydra|artifacts|logger|sweep(?=[.]))([./].*)?")


@dataclass(frozen=True)
class Record:
    """One file of ``results/``: row ``name`` of table ``table``, with the file's content."""

    table: str
    name: str
    holds: Mapping[str, Any] = field(repr=False)

    @property
    def seed(self) -> int | None:
        """The seed of the run; None for a mean."""
        return self.holds.get("seed")

    def metric(self, key: str) -> Stat | None:
        """A metric as mean, standard deviation and n; for one run its value, None and 1."""
        value = self.holds["metrics"].get(key)
        if value is None:
            return None
        return Stat(value, (self.holds.get("std") or {}).get(key), self.holds.get("n", 1))


def without_paths(text: str) -> str:
    """``text`` with every absolute path shortened to its last component."""
    return _ABSOLUTE.sub(lambda path: path.group(1), text)


def command_of(run: Run) -> str:
    """The command of a run, without settings that only say where or when it ran, and without absolute paths."""
    kept = [
        key if key.startswith("~") and not value else f"{key}={value}"
        for key, value in run.settings.items()
        if not _OF_THE_MACHINE.fullmatch(key)
    ]
    quoted = [f"'{entry}'" if re.search(r"[\s\[\]{}()*$&|;<>]", entry) else entry for entry in map(without_paths, kept)]
    return " ".join(["kd-lightning", *quoted])


def from_run(run: Run) -> dict[str, Any]:
    """The content of a finished run's record."""
    result, cost = run.result, run.result.get("cost") or {}
    device, _, threads = str(result.get("device") or "").partition(" x")
    seconds = {name: round(spent, 1) for name, spent in (cost.get("seconds") or {}).items()}
    made = time.strftime("%Y-%m-%d", time.localtime((run.folder / "result.json").stat().st_mtime))
    seeds = {f"{who}_seed": run.setting(f"{who}.seed") for who in ("teacher", "source")}
    metrics = {key: value for key, value in (result.get("metrics") or {}).items() if value is not None}
    known = {
        "record_version": VERSION,
        "source": "run",
        "date": made,
        "command": command_of(run),
        "seed": result.get("seed"),
        **{key: int(seed) for key, seed in seeds.items() if seed.isdecimal() and int(seed)},
        "metrics": metrics,
        "unit": pick(result, "task", "unit"),
        "parameters": {name: net["parameters"] for name, net in (result.get("models") or {}).items()},
        "seconds": seconds,
        "updates": cost.get("updates"),
        "queries": cost.get("queries"),
        "images_synthesised": cost.get("images_synthesised"),
        "device": device,
        "threads": int(threads) if threads.isdecimal() else None,
        "precision": result.get("precision"),
        "versions": result.get("versions"),
        "git": result.get("git"),
    }
    return {key: value for key, value in known.items() if value not in (None, "", {})}


def write_records(runs: Sequence[Run], table: Path) -> list[Path]:
    """Write the record of every finished run into the folder ``table``, replacing one of the same name.

    A record is named after the run's method, the other settings that vary among ``runs``, and its seed.

    Raises:
        UserError: a run did not finish or has no seed, two runs get the same name, or a file cannot be written.
    """
    if not runs or any(run.status != "ok" for run in runs):
        bad = next((f"{run.folder}: {run.reason}" for run in runs if run.status != "ok"), "there is none")
        raise UserError(f"only finished runs are recorded: {bad}")
    files: dict[Path, dict[str, Any]] = {}
    for at in group(runs):
        for run in at.runs:
            varied = [value for key, value in at.settings.items() if key not in ("method", "data", "system")]
            name = "_".join([str(run.result.get("method")), *varied])
            path = table / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name).strip('_')}_s{run.result.get('seed')}.json"
            if path in files:
                raise UserError(f"two runs would both be recorded as {path}: give them to --record one at a time")
            files[path] = from_run(run)
            complaint = fault(files[path])
            if complaint:
                raise UserError(f"{run.folder} cannot be recorded: {complaint}")
    with writing(table):
        table.mkdir(parents=True, exist_ok=True)
        for path, holds in files.items():
            path.write_text(json.dumps(holds, indent=1, ensure_ascii=False) + "\n")
    return list(files)


def fault(holds: Any) -> str:
    """What is wrong with the content of a record; empty if it is valid."""
    if not isinstance(holds, dict):
        return "not a JSON object"
    for key in REQUIRED:
        if key not in holds:
            return f"no {key}"
    for key, value in holds.items():
        kind = FIELDS.get(key)
        if kind is None:
            return f"unknown key {key}; known: {', '.join(FIELDS)}"
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{key} is {value!r}, not of the type {kind.__name__}"
    if holds["record_version"] != VERSION:
        return f"record_version {holds['record_version']}, this kd_lightning reads {VERSION}"
    if holds["source"] not in ("run", "recorded"):
        return f"source is {holds['source']!r}, neither run nor recorded"
    if ("seed" in holds) == ("n" in holds):
        return "a record has either a seed or, as a mean, n"
    for key in ("metrics", "std", "seconds", "parameters"):
        for name, value in holds.get(key, {}).items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                return f"{key}: {name} is {value!r}, not a finite number"
    said = json.dumps({key: holds.get(key) for key in ("command", "note", "device")}, ensure_ascii=False)
    if path := _ABSOLUTE.search(said):
        return f"it names a path of a machine, {path.group()}"
    return ""


def read_records(folder: Path) -> list[Record]:
    """All records under ``folder``, sorted by table, name and seed.

    Raises:
        UserError: a file is not a record, its name is wrong, or a row has both a mean and single runs.
    """
    records = [_read(path) for path in sorted(folder.glob("*/*.json"))]
    for record in records:
        if record.seed is None and len([one for one in records if _row(one) == _row(record)]) > 1:
            path = folder / record.table / f"{record.name}_mean.json"
            raise UserError(f"{path} is the mean of runs that have records of their own: remove one or the other")
    return sorted(records, key=lambda record: (*_row(record), -1 if record.seed is None else record.seed))


def _row(record: Record) -> tuple[str, str]:
    return record.table, record.name


def _read(path: Path) -> Record:
    try:
        holds = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if complaint := fault(holds):
        raise UserError(f"{path} is not a record: {complaint}")
    name, _, which = path.stem.rpartition("_")
    wanted = "mean" if "seed" not in holds else f"s{holds['seed']}"
    if not name or which != wanted:
        raise UserError(f"{path} holds {wanted}: name it NAME_{wanted}.json")
    return Record(path.parent.name, name, holds)


def of_row(records: Iterable[Record], table: str, name: str) -> list[Record]:
    """The records of one row."""
    return [record for record in records if (record.table, record.name) == (table, name)]
