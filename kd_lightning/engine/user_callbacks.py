"""Callbacks that ``trainer.callbacks`` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from lightning.pytorch.callbacks import Callback

from kd_lightning.config.node import Node
from kd_lightning.errors import ConfigError
from kd_lightning.methods.base.distiller import Distiller


def callbacks_of(settings: Node, method: Distiller, phase: str, further: Sequence[str] = ()) -> list[Callback]:
    """The callbacks of ``trainer.callbacks``.

    Args:
        settings: of the trainer.
        method: it measures what it validates.
        phase: name of the fit in messages.
        further: names of metrics that the run adds.

    Raises:
        ConfigError: one monitors what this fit does not measure.
    """
    nodes = settings.get("callbacks") or ()
    found = [cast(Node, Node.of(node)).build() for node in ((nodes,) if isinstance(nodes, Mapping) else nodes)]
    validated = method.trains_student or method.validates
    measured = [*(f"val/{name}" for name in (*method.metrics, *further)), "val/agreement"] if validated else []
    for callback in found:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in measured:
            has = f"it measures {', '.join(measured)}" if measured else "it validates nothing"
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} monitors {monitor}, which the fit {phase!r} does not "
                f"measure: {has}"
            )
    return found
