"""The figure of ``kd-report --plot``; only here is matplotlib needed, and imported when drawing."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.core.extras import install
from kd_lightning.errors import UserError
from kd_lightning.results.run_index import NOTHING, Group, Stat
from kd_lightning.results.table import headline_key, measured_in, metric_columns, unit_of
from kd_lightning.results.training_curves import curves as training_curves
from kd_lightning.store.files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = ("seconds", "rounds", "queries")
"""What a fit spends while it learns."""


def plot(groups: Sequence[Group], path: Path, by: str | None = None, over: str | None = None) -> None:
    """Save the figure of :func:`draw` or, if a setting or a cost is named, of one of the others.

    Raises:
        UserError: as for these, or ``path`` cannot be written.
    """
    if over in COSTS:
        figure = learning(groups, over)
    else:
        figure = curves(groups, over) if over else spread(groups, by) if by else draw(groups)
    with writing(path):
        figure.savefig(path)


def draw(groups: Sequence[Group]) -> Figure:
    """Plot every group's metric with its error bar, beside the teacher's and the controls'.

    The x axis is the total time in seconds and, in a second panel if the groups differ in it, the number of queries.

    Raises:
        UserError: matplotlib is missing, or nothing was measured.
    """
    figure_of_size = _figures()
    key, measured = _measured(groups)
    metric = key.removeprefix("test/")
    labels = [", ".join(f"{k}={v}" for k, v in at.settings.items()) + f"  (n {s.n})" for at, s in measured]
    colours = [f"C{i % 10}" for i in range(len(measured))]
    panels = {"total seconds": [at.cost("seconds", "total") for at, _ in measured]}
    queries = [at.cost("queries") for at, _ in measured]
    if len(set(queries)) > 1:
        panels["queried images"] = queries

    height = max(3.2, 1.4 + 0.32 * len(measured))
    figure = figure_of_size(4.2 * (1 + len(panels)) + 1.5, height)
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
    for marker, (name, means) in zip(itertools.cycle("sDv^<>"), _controls(measured, metric).items(), strict=False):
        first.plot(means, range(len(means)), marker, color="grey", markerfacecolor="none", label=name)
    if first.get_legend_handles_labels()[1]:
        first.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    first.set_yticks(range(len(measured)), labels)
    first.invert_yaxis()
    first.set_xlabel(_label(key, measured))
    for axes, (name, costs) in zip(others, panels.items(), strict=True):
        for (_, stat), cost, colour in zip(measured, costs, colours, strict=True):
            if cost is not None:
                axes.errorbar(cost, stat.mean, yerr=stat.std, fmt="o", color=colour, capsize=3)
        axes.set_xlabel(name)
        axes.set_ylabel(_label(key, measured))
    for axes in (first, *others):
        axes.locator_params(axis="x", nbins=5)
        _plain(axes)
    return figure


def spread(groups: Sequence[Group], by: str) -> Figure:
    """Plot one row per value of the setting ``by``: a dot for every group's mean, below it their mean ± deviation.

    Raises:
        UserError: matplotlib is missing, nothing was measured, or ``by`` does not vary.
    """
    figure_of_size = _figures()
    key, measured = _measured(groups)
    _refuse_constant(measured, by, "--by")
    means: dict[str, list[float]] = {}
    for at, stat in measured:
        means.setdefault(at.settings[by], []).append(stat.mean)
    figure = figure_of_size(6.5, 1.2 + 0.6 * len(means))
    axes = figure.subplots()
    for i, values in enumerate(means.values()):
        axes.plot(values, [i] * len(values), "o", alpha=0.6)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        axes.errorbar(statistics.fmean(values), i + 0.25, xerr=deviation, fmt="|", color="black", capsize=3)
    axes.set_yticks(range(len(means)), [f"{value}  ({len(values)} settings)" for value, values in means.items()])
    axes.invert_yaxis()
    axes.set_xlabel(_label(key, measured))
    _plain(axes)
    return figure


def curves(groups: Sequence[Group], over: str) -> Figure:
    """Plot the metric over the numbers of the setting ``over``, a line for each combination of the other settings.

    Raises:
        UserError: matplotlib is missing, nothing was measured, or ``over`` does not vary or is not a number.
    """
    figure_of_size = _figures()
    key, measured = _measured(groups)
    _refuse_constant(measured, over, "--over")
    lines: dict[str, list[tuple[float, Stat]]] = {}
    for at, stat in measured:
        try:
            place = float(at.settings[over])
        except ValueError:
            said = f"--over {over}: {at.settings[over]} is not a number"
            raise UserError(f"{said}; for names it is --by {over}") from None
        others = [_told(name, value) for name, value in at.settings.items() if name != over and value != NOTHING]
        lines.setdefault(", ".join(others) or "student", []).append((place, stat))
    figure = figure_of_size(7.5, 3.8)
    axes = figure.subplots()
    for name, points in lines.items():
        places, stats = zip(*sorted(points), strict=True)
        spreads = [stat.std or 0.0 for stat in stats]
        axes.errorbar(places, [stat.mean for stat in stats], yerr=spreads, fmt="o-", capsize=3, label=name)
    teachers = {s.mean for at, _ in measured if (s := at.stat(f"teacher/{key.removeprefix('test/')}"))}
    if len(teachers) == 1:
        axes.axhline(teachers.pop(), color="grey", linestyle="--", linewidth=1, label="teacher")
    ticks = sorted({place for points in lines.values() for place, _ in points})
    if ticks[0] > 0 and ticks[-1] >= 10 * ticks[0]:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(over)
    axes.set_ylabel(_label(key, measured))
    _plain(axes, legend=True)
    return figure


def learning(groups: Sequence[Group], over: str) -> Figure:
    """Plot the validation metric while the student learned, a line for each run.

    Args:
        groups: of finished runs.
        over: ``seconds`` of training, ``rounds`` or ``queries``.

    Raises:
        UserError: matplotlib is missing, nothing was measured, or no run has such a curve.
    """
    figure_of_size = _figures()
    key, measured = _measured(groups)
    name = f"val/{key.removeprefix('test/')}"
    figure = figure_of_size(7.5, 3.8)
    axes = figure.subplots()
    for i, (at, _) in enumerate(measured):
        label = ", ".join(_told(*setting) for setting in at.settings.items() if setting[1] != NOTHING) or "student"
        for run in at.runs:
            there = training_curves(run.folder).get(name) if (run.folder / "metrics.csv").is_file() else None
            if there is not None and (places := getattr(there, over)) is not None:
                axes.plot(places, there.values, color=f"C{i % 10}", label=label)
                label = "_"  # once for each colour
    if not axes.lines:
        paid = " and a teacher that is asked by number of images" if over == "queries" else ""
        raise UserError(f"--over {over}: no run drew {name} over it, which takes images held out (data.val){paid}")
    axes.set_xlim(left=0)
    axes.set_xlabel({"seconds": "seconds of training"}.get(over, over))
    axes.set_ylabel(f"{_label(key, measured)}, validation")
    _plain(axes, legend=True)
    return figure


def _plain(axes: Axes, *, legend: bool = False) -> None:
    """A faint grid and no box; the legend beside the plot."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _told(name: str, value: str) -> str:
    """A setting in a legend: a name that was chosen by itself, a number or a bool with the last word of its key."""
    return value if re.match(r"(?!true$|false$)[A-Za-z]", value) else f"{name.rpartition('.')[2]}={value}"


def _refuse_constant(measured: Sequence[tuple[Group, Stat]], key: str, option: str) -> None:
    varying = list(dict.fromkeys(name for at, _ in measured for name in at.settings))
    if key not in varying:
        raise UserError(f"{option} {key}: does not vary among these runs; what does: {', '.join(varying) or 'nothing'}")


def _figures() -> Callable[[float, float], Figure]:
    try:
        from matplotlib import figure
    except ImportError as error:
        raise UserError(f"plots need matplotlib: {install('notebook')}") from error
    return lambda width, height: figure.Figure(figsize=(width, height), layout="constrained", dpi=150)


def _controls(measured: Sequence[tuple[Group, Stat]], metric: str) -> dict[str, list[float]]:
    """The controls' values of the student's metric, by name: a mean for every group, NaN if not measured."""
    own, found = [stat.mean for _, stat in measured], {}
    for key, name in metric_columns([at for at, _ in measured]).items():
        if key.endswith(f"/{metric}") and not key.startswith(("test/", "teacher/")):
            means = [stat.mean if (stat := at.stat(key)) else math.nan for at, _ in measured]
            if means != own:  # not a copy of the student's own
                found[name] = means
    return found


def _label(key: str, measured: Sequence[tuple[Group, Stat]]) -> str:
    """A metric's name for people, with its unit if all runs have the same."""
    units = {unit_of(run.result) for at, _ in measured for run in at.runs}
    return measured_in(key.removeprefix("test/"), units.pop() if len(units) == 1 else "")


def _measured(groups: Sequence[Group]) -> tuple[str, list[tuple[Group, Stat]]]:
    key = next((key for at in groups for run in at.runs if (key := headline_key(run.result))), None)
    measured = [(at, stat) for at in groups if key and (stat := at.stat(key))]
    if key is None or not measured:
        raise UserError("nothing to plot: no finished run has a test metric")
    return key, measured
