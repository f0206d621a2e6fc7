"""``kd-artifacts``: list the artefacts of the store with their uses, and remove them."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from platformdirs import user_cache_path
from tabulate import tabulate

from kd_lightning.cli.entry import command
from kd_lightning.errors import UserError
from kd_lightning.store.catalog import Entry, entries, garbage, locked, remove, users_of
from kd_lightning.store.files import in_words

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def chosen(names: Sequence[str], found: Sequence[Entry]) -> list[Entry]:
    """The entries that names, or unique prefixes of names, stand for.

    Raises:
        UserError: a name matches no entry, or several.
    """
    picked = []
    for name in names:
        exact = [entry for entry in found if entry.folder.name == name]
        like = exact or [entry for entry in found if entry.folder.name.startswith(name)]
        if len(like) != 1:
            several = f"stands for {', '.join(e.folder.name for e in like[:5])}: type more of it"
            raise UserError(f"{name} {several if like else 'is not there: kd-artifacts ls names what is'}")
        picked += like
    return picked


def refuse_used(picked: Sequence[Entry], found: Sequence[Entry]) -> None:
    """Check that nothing outside ``picked`` was made from them.

    Raises:
        UserError: names the artefacts that use one of them.
    """
    going = {entry.folder for entry in picked}
    for entry in picked:
        missing = [user.name for user in users_of(entry.name, found) if user.folder not in going]
        if missing and entry.state in ("", "unreadable"):
            raise UserError(f"{entry.name} is used by {', '.join(missing)}: remove those too, or add --force")


def table(found: Sequence[Entry], everything: Sequence[Entry]) -> str:
    """A table of entries: name, size, age, number of users, description; and their total."""
    rows = [
        [e.folder.name, in_words(e.size), _age(e.touched), len(users_of(e.name, everything)) or "–", e.state or e.about]
        for e in found
    ]
    rows.append([f"{len(found)} in all", in_words(sum(entry.size for entry in found)), "", "", ""])
    aligned = ["left", "right", "right", "right", "left"]
    return tabulate(rows, ["", "size", "age", "used by", "what"], "simple", colalign=aligned, disable_numparse=True)


def _age(touched: float) -> str:
    seconds = max(0.0, time.time() - touched)
    unit = next((unit for unit in ("d", "h", "m") if seconds >= UNITS[unit]), "s")
    return f"{seconds / UNITS[unit]:.0f} {unit}"


def _span(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no span of time: type a number and s, m, h, d or w, such as 30d")
    return float(match[1]) * UNITS[match[2]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd-artifacts", description="What is kept between runs.")
    parser.add_argument("--root", type=Path, help="the store; default KD_ARTIFACTS, else the user's cache")
    command = parser.add_subparsers(dest="command", required=True)
    listing = command.add_parser("ls", help="list artefacts")
    listing.add_argument("names", nargs="*", metavar="NAME", help="beginnings of names, such as fit")
    listing.add_argument("-l", "--long", action="store_true", help="also what each uses, and what uses it")
    removing = command.add_parser("rm", help="remove by name")
    removing.add_argument("names", nargs="+", metavar="NAME", help="a name, or enough of its beginning")
    removing.add_argument("--force", action="store_true", help="also what others were made from")
    sweeping = command.add_parser("gc", help="remove unfinished builds, and fits and pools that no run uses")
    sweeping.add_argument(
        "--older-than", type=_span, default="7d", metavar="SPAN", help="such as 12h or 30d; default 7d"
    )
    sweeping.add_argument("--keep", nargs="+", default=[], metavar="NAME", help="beginnings of names that stay")
    for each in (removing, sweeping):
        each.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


@command("kd-artifacts")
def main(argv: Sequence[str] | None) -> None:
    """List, remove or tidy."""
    args = _parser().parse_args(argv)
    root = args.root or os.environ.get("KD_ARTIFACTS")
    found = entries(Path(root).expanduser() if root else user_cache_path("kd_lightning"))
    if args.command == "ls":
        _list(args, found)
    else:
        _let_go(args, found)


def _list(args: argparse.Namespace, found: list[Entry]) -> None:
    shown = [e for e in found if not args.names or e.folder.name.startswith(tuple(args.names))]
    print(table(shown, found))
    for entry in shown if args.long else ():
        users = ", ".join(user.name for user in users_of(entry.name, found)) or "nothing"
        uses = "unknown" if entry.uses is None else ", ".join(sorted(entry.uses)) or "nothing"
        print(f"{entry.folder.name}: uses {uses}; used by {users}")


def _let_go(args: argparse.Namespace, found: list[Entry]) -> None:
    if args.command == "rm":
        going, notes = chosen(args.names, found), list[str]()
        if not args.force:
            refuse_used(going, found)
        with ExitStack() as every:  # lock all of them before any is removed
            for entry in going:
                every.enter_context(locked(entry))
    else:
        going, notes = garbage(found, before=time.time() - args.older_than, keep=args.keep)
    print(*notes, sep="\n", end="\n" if notes else "")
    if not going:
        print(
            "nothing to remove" if args.command == "rm" else "nothing to remove: --older-than 0s takes younger ones too"
        )
        return
    print(table(going, found))
    for entry in () if args.dry_run else going:
        remove(entry)
    print(f"{'would free' if args.dry_run else 'freed'} {in_words(sum(entry.size for entry in going))}")


if __name__ == "__main__":
    sys.exit(main())
