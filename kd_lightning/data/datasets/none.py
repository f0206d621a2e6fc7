"""No images: only the teacher's class names and the shape of its images."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.core.sides import Size, sides
from kd_lightning.data.dataset import Dataset


def load(*, classes: Sequence[str] | int, channels: int, size: Size) -> Dataset:
    """Describe a data set without images, for methods that need none.

    Args:
        classes: their names, or their number.
        channels: of the teacher's images, 1 or 3.
        size: their side in pixels, or height and width.
    """
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
    return Dataset(
        name="none",
        classes=names,
        train=None,
        val=None,
        test=None,
        layout="none",
        encoding="none",
        shape=(channels, *sides(size)),
    )
