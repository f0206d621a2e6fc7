"""The summary that a run prints at its end: student, teacher and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kd_lightning.results.run_index import NOTHING, pick
from kd_lightning.results.table import CONTROLS, OWN, cut_short, headline_key, measured_in, unit_of

MADE_OF = {"adapted": "teacher"}
"""Row -> the network whose size it has, where that is not the student's."""


def summary(result: Mapping[str, Any], paths: Sequence[str | Path] = ()) -> str:
    """The text that a run prints at its end: student, teacher and controls.

    Rows without any measurement (no teacher, no such control) are left out.

    Args:
        result: content of result.json.
        paths: files written, one line each.
    """
    metrics = result.get("metrics") or {}
    judged = (headline_key(result) or "test/accuracy").removeprefix("test/")
    controls = [key.removesuffix(f"/{judged}") for key in metrics if key.endswith(f"/{judged}")]
    own_name = result.get("result_name")  # another name of the student's own numbers
    controls = [name for name in controls if name not in ("teacher", "test", "val", "train", own_name)]
    controls.sort(key=["adapted", "scratch", "noise", *controls].index)
    rows = []
    for name in ("teacher", *controls, "test"):
        label = {"teacher": "teacher", "test": own_name or "student (this run)"}.get(name, CONTROLS.get(name, name))
        model = name if name == "teacher" or pick(result, "models", name) else MADE_OF.get(name, "student")
        seconds = pick(result, "cost", "seconds", "student" if name == "test" else name)
        parameters = pick(result, "models", model, "parameters")
        cells = [metrics.get(f"{name}/{judged}"), metrics.get(f"{name}/agreement")]
        if name == "teacher" and cells[0] is None and parameters is None:
            continue
        rows.append(
            [label]
            + [NOTHING if cell is None else f"{cell:.4f}" for cell in cells]
            + [NOTHING if parameters is None else f"{parameters:,}"]
            + [f"{seconds:.1f}" if seconds else NOTHING]
        )
    unit = unit_of(result)
    headers = ["", measured_in(judged, unit), measured_in("agreement", unit), "parameters", "seconds"]
    aligned = ["left", "right", "right", "right", "right"]
    title = f"{result.get('system')} on {result.get('data')}, seed {result.get('seed')}"
    if result.get("status") != "ok":
        title += f": {result.get('status')}, {result.get('reason')}"
    table = tabulate(rows, headers, tablefmt="simple", colalign=aligned, disable_numparse=True)
    lines = [title, "", table]
    paper = pick(result, "paper", f"test/{judged}")
    if paper is not None:
        lines += ["", f"the paper's student: {judged} {paper:.10g} {unit}".rstrip()]
    generated = metrics.get("generated/agreement")
    if generated is not None and metrics.get(f"test/{judged}") is None:
        lines += ["", f"agreement with the teacher on 1,000 generated images, not on real ones: {generated:.4f}"]
    if cut := cut_short(result):
        lines += ["", f"cut short: {cut}"]
    lines += ["", *(f"warning: {line}" for line in told)] if (told := result.get("warnings")) else []
    for prefix in (*OWN, "chosen/"):
        found = {key.removeprefix(prefix): v for key, v in metrics.items() if key.startswith(prefix) and v is not None}
        if found:
            told = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4f}" for k, v in found.items())
            lines += ["", f"{prefix.removesuffix('/')}: {told}"]
    own = [f"{key} {v:.4f}" for key, v in metrics.items() if _is_own(key, result) and v is not None]
    lines += ["", f"further metrics: {', '.join(own)}"] if own else []
    if "compression" in metrics:
        told = {key.removeprefix("mechanisms/"): v for key, v in metrics.items() if key.startswith("mechanisms/")}
        small = f"{metrics['compression/parameters']:,.0f}"
        lines += [
            "",
            f"students of {small} parameters together, {metrics['compression']:.2f} times fewer than their teacher",
        ]
        lines += [", ".join(f"{name} {value:.3g}" for name, value in told.items() if value is not None)]
    if paths:
        lines += ["", *(f"wrote {path}" for path in paths)]
    return "\n".join(lines) + "\n"


def _is_own(key: str, result: Mapping[str, Any]) -> bool:
    """Whether a number is of a metric that the configuration added, and not of those that have lines of their own."""
    name = key.partition("/")[0]
    return name in (result.get("further_metrics") or ()) and not key.startswith((*OWN, "mechanisms/", "compression"))
