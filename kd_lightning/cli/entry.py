"""What all commands have in common: one line and an exit code for every error that the user can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
                with writing_to_a_pipe():
                    return main(argv) or 0
            except UserError as error:
                print(f"{program}: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130

        return entry

    return decorated


@contextmanager
def writing_to_a_pipe() -> Iterator[None]:
    """Inside, whoever reads the standard output may stop reading, as ``head`` does: the program ends with 1."""
    try:
        try:
            yield
        finally:  # also where argparse has printed its help and ends the program
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
        sys.exit(1)
