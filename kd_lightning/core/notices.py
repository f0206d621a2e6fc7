"""Warnings that belong to a result: said when they arise, and kept with what they are about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LISTENING: list[list[str]] = []


def keep(message: str) -> None:
    """Add a message to what the enclosing ``noticing`` blocks have heard, without a warning on the screen."""
    for heard in _LISTENING:
        if message not in heard:
            heard.append(message)


def notice(message: str, *, stacklevel: int = 2) -> None:
    """Warn, and add the message to what the enclosing ``noticing`` blocks have heard."""
    keep(message)
    warnings.warn(message, stacklevel=stacklevel + 1)


@contextmanager
def noticing() -> Iterator[list[str]]:
    """Yields a list that fills with the messages inside the ``with`` block."""
    heard: list[str] = []
    _LISTENING.append(heard)
    try:
        yield heard
    finally:
        _LISTENING[:] = [other for other in _LISTENING if other is not heard]
