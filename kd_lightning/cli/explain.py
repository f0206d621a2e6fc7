"""``kd-lightning explain``: every value of a composition and the file that sets it."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from tabulate import tabulate

from kd_lightning.config import resolvers
from kd_lightning.errors import UserError

LONGEST = 60


def main(argv: Sequence[str]) -> None:
    """Print the table.

    Args:
        argv: overrides as ``kd-lightning`` takes them, and any keys below which to look.
    """
    parser = ArgumentParser("kd-lightning explain", description="Show each value of a run and the file that sets it.")
    parser.add_argument("words", nargs="*", metavar="KEY|KEY=VALUE", help="where to look; choices as for a run")
    parser.add_argument("--config-dir", action="append", default=[], help="a folder with groups of your own")
    args = parser.parse_args(argv)
    from kd_lightning.config.origins import origins

    resolvers.register()
    within = [word for word in args.words if "=" not in word and not word.startswith("~")]
    try:
        rows = origins([word for word in args.words if word not in within], within, args.config_dir)
        if not rows:
            raise UserError(f"{', '.join(within)}: there is no such setting; kd-lightning explain lists them all")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    cells = [(row.key, _short(row.value), row.file) for row in rows]
    print(tabulate(cells, ["key", "value", "file"], tablefmt="plain", disable_numparse=True))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
