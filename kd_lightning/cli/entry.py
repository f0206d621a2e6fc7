"""What all commands have in common: one line and an exit code for every error that the user can mend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps

from kd_lightning.errors import UserError

Main = Callable[[Sequence[str] | None], int | None]


def command(program: str) -> Callable[[Main], Callable[..., int]]:
    """Decorate the ``main`` of a command.

    It may return an exit code, which is 0 otherwise; a :class:`UserError` becomes one line and 2, Ctrl-C 130.

    Args:
        program: its name, with which the line begins.
    """

    def decorated(main: Main) -> Callable[..., int]:
        @wraps(main)
        def entry(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv) or 0
            except UserError as error:
                print(f"{program}: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130

        return entry

    return decorated
