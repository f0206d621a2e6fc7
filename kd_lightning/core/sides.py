"""Height and width of images, given as one number for both or as the two."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.errors import DataError, SizeError

Size = int | Sequence[int]
"""Height and width, or one number for both."""


def sides(size: Size) -> tuple[int, int]:
    """Height and width that ``data.size`` gives: one number for both, or the two.

    Raises:
        DataError: it is neither.
    """
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or min(both) < 1:
        raise DataError(f"data.size={list(both)}: expected one number, or height and width, such as [90,120]")
    return both[0], both[1]


def one_side(size: Size, *, of: str) -> int:
    """The side of a square.

    Args:
        size: as ``data.size`` gives it.
        of: the network that makes or takes squares only, for the message.

    Raises:
        SizeError: height and width differ.
    """
    height, width = sides(size)
    if height != width:
        raise SizeError(f"{of} is for square images, got {height}x{width}: set data.size to one number")
    return height


def halved(size: Size, times: int, *, of: str) -> tuple[int, int]:
    """Height and width after halving them ``times`` times.

    Raises:
        SizeError: one of them cannot be halved so often.
    """
    height, width = sides(size)
    if height % (1 << times) or width % (1 << times):
        by, said = 1 << times, height if height == width else [height, width]
        raise SizeError(f"size={said}: expected a multiple of {by}, as {of} halves it {times} times")
    return height >> times, width >> times
