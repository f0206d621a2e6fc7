"""``kd-boundary``: how closely students follow their teacher's decision boundary, in finished runs."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_lightning.cli.entry import command
from kd_lightning.core.extras import install
from kd_lightning.core.multi_label import MultiLabel
from kd_lightning.core.segmentation import Segmentation
from kd_lightning.core.tasks import Regression
from kd_lightning.errors import UserError
from kd_lightning.metrics.boundary import Boundary, Pairs
from kd_lightning.results.run_index import NOTHING, Run, Stat, collect, group
from kd_lightning.results.run_loader import load_teacher, open_run, real_images
from kd_lightning.results.table import Cell, Table, render
from kd_lightning.store.files import writing

NAMES = ("magsim", "angsim", "valid_fraction")


@dataclass
class Measured:
    """Runs that differ only in their seeds, with the walks of student and teacher in each."""

    settings: dict[str, str]
    pairs: list[Pairs]

    def stat(self, name: str, max_steps: int) -> Stat | None:
        """Mean and spread over the runs with a valid pair; walks are given up after ``max_steps``."""
        values = [getattr(pairs.within(max_steps), name) for pairs in self.pairs]
        values = [value for value in values if not math.isnan(value)]
        if not values:
            return None
        return Stat(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def measure(runs: Sequence[Run], metric: Boundary, *, trust: bool = False) -> list[Measured]:
    """Walk on teacher and student of every run that finished well.

    Raises:
        UserError: no run finished well, or one has no readable teacher, no images or no classes.
    """
    found = []
    for at in group(runs):
        pairs = []
        for run in at.runs:
            finished = open_run(run.folder, trust=trust)
            if isinstance(finished.task, Regression):
                raise UserError(f"{run.folder}: its labels are numbers, between which there is no boundary")
            if isinstance(finished.task, MultiLabel):
                raise UserError(f"{run.folder}: its images have several labels, and walks are between two classes")
            if isinstance(finished.task, Segmentation):
                raise UserError(
                    f"{run.folder}: its labels are maps of classes, but walks are between images of one class"
                )
            images = real_images(finished)
            if not images.labelled:
                raise UserError(f"{run.folder}: its images have no labels, and walks are between images of one class")
            pairs.append(metric.pairs(finished.student, load_teacher(finished), images))
        if pairs:
            found.append(Measured(at.settings, pairs))
    if not found:
        raise UserError(
            "none of these runs ended well: " + "; ".join(f"{run.folder}: {run.reason}" for run in runs[:3])
        )
    return found


def table(measured: Sequence[Measured], metric: Boundary) -> Table:
    """One row per combination of settings, seeds folded; a note says what is averaged."""
    names = list(dict.fromkeys(key for at in measured for key in at.settings))
    rows: list[list[Cell]] = []
    for at in measured:
        chosen: list[Cell] = [at.settings.get(name, NOTHING) for name in names]
        stats: list[Cell] = [at.stat(name, metric.max_steps) for name in NAMES]
        images = round(statistics.fmean(pairs.images for pairs in at.pairs))
        rows.append([*chosen, len(at.pairs), *stats, images])
    notes = [
        "pairs of a test image that teacher and student get right and another class; means over the pairs whose walks "
        f"both crossed within {metric.max_steps} steps (eta {metric.eta:g}, eps {metric.eps:g}): valid_fraction of all"
    ]
    return Table([*names, "n", *NAMES, "images"], rows, notes)


def draw(measured: Sequence[Measured], metric: Boundary, path: Path) -> None:
    """Plot the measures over the largest number of steps, one line per combination of settings.

    Raises:
        UserError: matplotlib is missing, or ``path`` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"plots need matplotlib: {install('notebook')}") from error
    figure = Figure(figsize=(12, 3.6), layout="constrained", dpi=150)
    steps = range(1, metric.max_steps + 1)
    for axes, name in zip(figure.subplots(1, 3), NAMES, strict=True):
        for at in measured:
            stats = [(m, stat) for m in steps if (stat := at.stat(name, m))]
            label = ", ".join(f"{k}={v}" for k, v in at.settings.items()) + f"  (n {len(at.pairs)})"
            (line,) = axes.plot([m for m, _ in stats], [stat.mean for _, stat in stats], marker=".", label=label)
            low, high = ([s.mean + sign * (s.std or 0) for _, s in stats] for sign in (-1, 1))
            axes.fill_between([m for m, _ in stats], low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_xlabel("steps a walk may take")
        axes.set_title(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize="small")
    with writing(path):
        figure.savefig(path)


@command("kd-boundary")
def main(argv: Sequence[str] | None) -> None:
    """Print the table and draw the curves."""
    parser = argparse.ArgumentParser(
        prog="kd-boundary", description="MagSim and AngSim of students against their teachers, mean ± std over seeds."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, or any folder that holds runs")
    parser.add_argument("--plot", metavar="PNG", type=Path, help="also draw the curves over the steps of a walk")
    parser.add_argument("--steps", type=int, default=10, help="walks are given up after so many (default 10)")
    parser.add_argument("--images", type=int, default=500, help="at most so many test images (default 500)")
    parser.add_argument("--eta", type=float, default=0.3, help="length of a step for a margin of 1 (default 0.3)")
    parser.add_argument("--markdown", action="store_const", dest="form", const="markdown", default="terminal")
    parser.add_argument("--trust", action="store_true", help="import networks and data sets from anywhere")
    args = parser.parse_args(argv)
    if args.trust:
        sys.path.append(str(Path.cwd()))
    metric = Boundary(images=args.images, eta=args.eta, max_steps=args.steps)
    measured = measure(collect(args.runs), metric, trust=args.trust)
    print(render(table(measured, metric), args.form), end="")
    if args.plot:
        draw(measured, metric, args.plot)
        print(f"wrote {args.plot}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
