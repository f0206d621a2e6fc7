"""The figure of ``kd-report --plot``; matplotlib is wanted here alone and imported when drawing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.artifacts import writing
from kd_lightning.errors import UserError
from kd_lightning.report import headline_key
from kd_lightning.runs import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(groups: Sequence[Group], path: Path) -> None:
    """Write what :func:`draw` draws.

    Raises:
        UserError: as for :func:`draw`, or ``path`` cannot be written.
    """
    figure = draw(groups)
    with writing(path):
        figure.savefig(path)


def draw(groups: Sequence[Group]) -> Figure:
    """Every group's metric with its error bar, over total seconds, and over queries if any were asked.

    Raises:
        UserError: matplotlib is missing, or nothing was measured.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'kd-lightning[notebook]'") from error
    key = next((key for at in groups for run in at.runs if (key := headline_key(run.result))), None)
    measured = [(at, stat) for at in groups if key and (stat := at.stat(key))]
    if key is None or not measured:
        raise UserError("nothing to plot: no finished run has a test metric")
    metric = key.removeprefix("test/")
    labels = [", ".join(f"{k}={v}" for k, v in at.settings.items()) + f"  (n {s.n})" for at, s in measured]
    colours = [colormaps["tab10"](i % 10) for i in range(len(measured))]
    panels = {"total seconds": [at.cost("seconds", "total") for at, _ in measured]}
    queries = [at.cost("queries") for at, _ in measured]
    if any(queries):
        panels["images the teacher was asked about"] = queries

    height = max(3.2, 1.4 + 0.32 * len(measured))
    figure = Figure(figsize=(4.2 * (1 + len(panels)) + 1.5, height), layout="constrained", dpi=150)
    first, *others = figure.subplots(1, 1 + len(panels))
    for i, ((at, stat), colour) in enumerate(zip(measured, colours, strict=True)):
        first.errorbar(stat.mean, i, xerr=stat.std, fmt="o", color=colour, capsize=3)
        paper = at.paper(key)
        if paper is not None:
            first.plot(paper, i, "x", color="black")
    if any(at.paper(key) is not None for at, _ in measured):
        first.plot([], [], "x", color="black", label="paper")
    teachers = {s.mean for at, _ in measured if (s := at.stat(f"teacher/{metric}"))}
    if len(teachers) == 1:
        first.axvline(teachers.pop(), color="grey", linestyle="--", linewidth=1, label="teacher")
    if first.get_legend_handles_labels()[1]:
        first.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    first.set_yticks(range(len(measured)), labels)
    first.invert_yaxis()
    first.set_xlabel(metric)
    for axes, (name, costs) in zip(others, panels.items(), strict=True):
        for (_, stat), cost, colour in zip(measured, costs, colours, strict=True):
            if cost is not None:
                axes.errorbar(cost, stat.mean, yerr=stat.std, fmt="o", color=colour, capsize=3)
        axes.set_xlabel(name)
        axes.set_ylabel(metric)
    for axes in (first, *others):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
