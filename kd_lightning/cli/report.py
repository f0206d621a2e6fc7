"""``kd-report``: a table of run and sweep folders, or the page of results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.cli.entry import command
from kd_lightning.errors import UserError
from kd_lightning.results.page import ROWS, results_page
from kd_lightning.results.plot import plot
from kd_lightning.results.records import write_records
from kd_lightning.results.run_index import collect, group
from kd_lightning.results.table import fold, render


@command("kd-report")
def main(argv: Sequence[str] | None) -> None:
    """Print the table or the page."""
    parser = argparse.ArgumentParser(prog="kd-report", description="One table over runs: mean ± std over seeds.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a run folder, any that holds runs, or results/")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_const", dest="form", const="markdown", default="terminal")
    form.add_argument("--csv", action="store_const", dest="form", const="csv", help="full precision, for other tools")
    parser.add_argument("--plot", metavar="PNG", type=Path, help="also draw the groups, over time and queries")
    figure = parser.add_mutually_exclusive_group()
    figure.add_argument("--by", metavar="KEY", help="draw the spread over all other settings instead: --by method")
    figure.add_argument(
        "--over",
        metavar="KEY",
        help="or lines over a number that was set, as --over teacher.budget, or while learning: --over seconds",
    )
    parser.add_argument("--against", metavar="METHOD", help="paired differences to the runs of this method")
    parser.add_argument("--record", metavar="results/TABLE", type=Path, help="also keep one small file for each run")
    args = parser.parse_args(argv)
    if len(args.folders) == 1 and (Path(args.folders[0]) / ROWS).is_file():
        if args.form == "csv" or args.plot or args.by or args.over or args.against or args.record:
            raise UserError(f"{args.folders[0]} holds records, of which only the page can be made: --markdown")
        print(results_page(Path(args.folders[0])), end="")
        return
    if not args.plot and (args.by or args.over):
        how = f"--by {args.by}" if args.by else f"--over {args.over}"
        raise UserError(f"{how} says how the figure is drawn: add --plot FILE.png")
    runs = collect(args.folders)
    table = fold(runs, args.against)
    print(render(table, args.form), end="")
    if args.form == "csv" and table.notes:
        print(*table.notes, sep="\n", file=sys.stderr)
    if args.record:
        for path in write_records(runs, args.record):
            print(f"wrote {path}", file=sys.stderr)
    if args.plot:
        plot(group(runs), args.plot, args.by, args.over)
        print(f"wrote {args.plot}", file=sys.stderr)
