"""Tables of results: from run folders to mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kd_lightning.results.paired import Difference, differences
from kd_lightning.results.run_index import NOTHING, SEEDS, Group, Run, Stat, collect, group, pick, seeds_of
from kd_lightning.store.files import writing

__all__ = ["Table", "collect", "fold", "headline", "render", "write_table"]

CONTROLS = {"scratch": "real data"}
BOUNDARY = "boundary/"
"""Prefix of the metrics of ``metrics=boundary``."""
GENERATION = "generation/"
"""Prefix of the metrics of ``metrics=generation``."""
OWN = (BOUNDARY, GENERATION)

Cell = str | int | float | Stat | Difference | None


@dataclass
class Table:
    """Cells under their headers, and the notes printed below."""

    headers: list[str]
    rows: list[list[Cell]]
    notes: list[str]


def headline_key(result: Mapping[str, Any]) -> str | None:
    """The metric a result is judged by: its first test metric other than agreement."""
    metrics = result.get("metrics") or {}
    return next((key for key in metrics if key.startswith("test/") and key != "test/agreement"), None)


def headline(result: Mapping[str, Any]) -> str:
    """The headline metric as text: ``accuracy 0.9712``, ``mae 5.1234 degrees``."""
    key = headline_key(result)
    value = result["metrics"][key] if key else None
    said = "" if key is None or value is None else f"{key.removeprefix('test/')} {value:.4f} {unit_of(result)}"
    return said.rstrip()


def unit_of(result: Mapping[str, Any]) -> str:
    """The unit of a result's metrics: ``degrees``; empty for fractions."""
    return pick(result, "task", "unit") or ""


def measured_in(name: str, unit: str) -> str:
    """A metric's name with its unit: ``mae (degrees)``."""
    return f"{name} ({unit})" if unit else name


def _unit(groups: Sequence[Group]) -> str:
    """The common unit of all runs; empty if they differ."""
    units = {unit_of(run.result) for at in groups for run in at.runs}
    return units.pop() if len(units) == 1 else ""


def metric_columns(groups: Sequence[Group]) -> dict[str, str]:
    """Metric to header: the student's on the test set, then the teacher's and the controls'."""
    unit = _unit(groups)
    measured = dict.fromkeys(key for at in groups for run in at.runs for key in run.result.get("metrics") or {})
    judged = [key[5:] for key in measured if key.startswith("test/") and key != "test/agreement"]
    own = [name for name in [*judged, "agreement"] if f"test/{name}" in measured]
    columns = {f"test/{name}": measured_in(name, unit) for name in own}
    of_others = [key.rpartition("/") for key in measured if not key.startswith(("test/", "val/", "train/"))]
    rank = {name: place for place, name in enumerate(("teacher", "scratch", "noise"))}
    of_others.sort(key=lambda parts: (rank.get(parts[0], len(rank)), parts[0]))
    for name, _, metric in of_others:
        if metric in judged:
            label = CONTROLS.get(name, name)
            columns[f"{name}/{metric}"] = label if len(judged) == 1 else f"{label} {metric}"
    return columns | {key: key.partition("/")[2] for key in measured if key.startswith(OWN)}


def _seed_note(groups: Sequence[Group]) -> list[str]:
    seeds = [seeds_of(run) for at in groups for run in at.runs]
    varied = []
    for key, values in zip(SEEDS, zip(*seeds, strict=True), strict=False):
        distinct = sorted(set(values), key=lambda value: (len(value), value))
        if len(distinct) > 1:
            shown = distinct if len(distinct) < 9 else [*distinct[:3], "...", distinct[-1]]
            varied.append(f"{key} ({', '.join(shown)})")
    if not varied:
        return []
    return [f"mean ± sample standard deviation over n runs; seeds that varied: {', '.join(varied)}"]


def fold(runs: Sequence[Run], against: str | None = None) -> Table:
    """One row per combination of settings, seeds folded into mean, standard deviation and n.

    Args:
        runs: finished and failed ones.
        against: a method; the student's metrics get a column with the paired difference to it.

    Raises:
        UserError: no finished run is of the method ``against``.
    """
    groups = group(runs)
    counted = {id(run) for at in groups for run in at.runs}
    copies = sum(run.status == "ok" and id(run) not in counted for run in runs)
    failed = any(at.failed for at in groups)
    names = list(dict.fromkeys(key for at in groups for key in at.settings))
    columns: dict[str, list[Cell]] = {name: [at.settings.get(name, NOTHING) for at in groups] for name in names}
    columns["n"] = [len(at.runs) for at in groups]
    if failed:
        columns["failed"] = [len(at.failed) for at in groups]
    for key, header in metric_columns(groups).items():
        if header in names:  # a sweep over teachers has a column of their names, too
            header = key.replace("/", " ")
        stats = [at.stat(key) for at in groups]
        if not key.startswith(("test/", *OWN)):
            # A teacher or control that all seeds share has no spread.
            stats = [stat and stat._replace(std=stat.std or None) for stat in stats]
        if any(stats):
            columns[header] = list(stats)
        if against is not None and any(stats) and key.startswith("test/") and key != "test/agreement":
            columns[f"{header} − {against}"] = list(differences(groups, key, against))
        if any(at.paper(key) is not None for at in groups):
            columns["paper" if "paper" not in columns else f"paper {header}"] = [at.paper(key) for at in groups]
    if any(at.cost("seconds", "total") is not None for at in groups):
        columns["seconds"] = [at.cost("seconds", "total") for at in groups]
    notes = _seed_note(groups)
    if against is not None:
        notes.append(f"− {against}: mean difference over the seeds that both have (95 % interval, Student's t)")
    if unit := _unit(groups):
        notes.append(
            f"mae, agreement and the columns derived from them: mean absolute differences in {unit}, less is better"
        )
    if copies:
        notes.append(f"{copies} repeated with the same settings and seeds: of each the newest counts")
    notes += [f"cut short: {run.folder}: {cut}" for run in runs if (cut := cut_short(run.result))]
    notes += warned(runs)
    ended = ("failed", "stopped", "unfinished")
    notes += [f"failed: {run.folder}: {run.reason}" for run in runs if run.status in ended]
    notes += [f"running: {run.folder}" for run in runs if run.status == "running"]
    notes += [f"unreadable: {run.reason}" for run in runs if run.status == "unreadable"]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Table(list(columns), rows, notes)


def warned(runs: Sequence[Run]) -> list[str]:
    """A line for each warning that runs keep, with the first run that has it and how many more."""
    places: dict[str, list[str]] = {}
    for run in runs:
        lines = run.result.get("warnings")
        for line in lines if isinstance(lines, list) else ():
            places.setdefault(str(line), []).append(str(run.folder))
    return [
        f"warning: {at[0]}{f' and {len(at) - 1} more' if len(at) > 1 else ''}: {line}" for line, at in places.items()
    ]


def cut_short(result: Mapping[str, Any]) -> str:
    """The fits that ``trainer.max_time`` ended before their last round, as text; empty if there are none."""
    early = result.get("ended_by") or {}
    return ", ".join(f"{name} by {at['by']} at round {at['round']:,} of {at['of']:,}" for name, at in early.items())


def _in_words(cell: Cell, header: str, n: int) -> str:
    if cell is None:
        return NOTHING
    if isinstance(cell, Stat):
        spread = "" if cell.std is None else f" ± {cell.std:.4f}"
        return f"{cell.mean:.4f}{spread}" + (f" (n {cell.n})" if cell.n != n else "")
    if isinstance(cell, Difference):
        return cell.in_words() + (f" (n {cell.n})" if cell.n != n else "")
    if isinstance(cell, float):
        return f"{cell:.1f}" if header == "seconds" else f"{cell:.10g}"
    return str(cell)


def _as_csv(table: Table) -> str:
    parts = [_csv_parts([row[i] for row in table.rows]) for i in range(len(table.headers))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    headers = zip(table.headers, parts, strict=True)
    writer.writerow([f"{header} {part}".rstrip() for header, own in headers for part in ("", *own)])
    for row in table.rows:
        cells: list[Any] = []
        for cell, own in zip(row, parts, strict=True):
            cells += [getattr(cell, "mean", cell), *(getattr(cell, part, None) for part in own)]
        writer.writerow(cells)
    return out.getvalue()


def _csv_parts(cells: Sequence[Cell]) -> list[str]:
    """Names of the columns that follow a mean in CSV."""
    if any(isinstance(cell, Difference) for cell in cells):
        return ["low", "high"]
    return ["std"] if any(isinstance(cell, Stat) for cell in cells) else []


def render(table: Table, form: str = "terminal") -> str:
    """The table with its notes as ``terminal`` or ``markdown`` text, or without them as ``csv`` at full precision."""
    if form == "csv":
        return _as_csv(table)
    n = table.headers.index("n")
    rows = [
        [_in_words(cell, header, int(str(row[n]))) for header, cell in zip(table.headers, row, strict=True)]
        for row in table.rows
    ]
    aligned = [
        "left" if i < n or len({"±" in row[i] for row in rows if row[i] != NOTHING}) > 1 else "right"
        for i in range(len(table.headers))
    ]
    if form == "markdown":
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    style = {"terminal": "simple", "markdown": "pipe"}[form]
    text = tabulate(rows, table.headers, tablefmt=style, colalign=aligned, disable_numparse=True)
    if table.notes:
        text += "\n\n" + "\n".join(f"- {note}" if form == "markdown" else note for note in table.notes)
    return text + "\n"


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            part.write_text(text)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_table(sweep_dir: str | Path, running: Collection[Path] = ()) -> Table:
    """Write ``table.md`` and ``table.csv`` into a sweep's folder, replacing earlier ones.

    Args:
        sweep_dir: folder of the sweep.
        running: folders of running jobs, which are left out.

    Raises:
        UserError: the folder holds no run, or cannot be written.
    """
    busy = {folder.resolve() for folder in running}
    table = fold([run for run in collect([sweep_dir]) if run.folder.resolve() not in busy])
    _write(Path(sweep_dir) / "table.md", render(table, "markdown"))
    _write(Path(sweep_dir) / "table.csv", render(table, "csv"))
    return table
