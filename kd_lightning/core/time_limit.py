"""``trainer.max_time``: its format, and the note that a fit ended by it leaves."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from kd_lightning.errors import ConfigError

EXPECTED = "expected HH:MM:SS or DD:HH:MM:SS, such as 00:30:00 for half an hour"


def duration(value: Any) -> timedelta | None:
    """Parse ``trainer.max_time``, the time that every fit is allowed; Lightning itself requires the days.

    Args:
        value: ``HH:MM:SS``, ``DD:HH:MM:SS``, the arguments of ``timedelta``, or None for no limit.

    Raises:
        ConfigError: it is none of these, or zero.
    """
    if value is None:
        return None
    if isinstance(value, str) and (parts := re.fullmatch(r"(?:(\d+):)?(\d+):(\d\d):(\d\d)", value.strip())):
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        allowed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    else:
        try:
            allowed = value if isinstance(value, timedelta) else timedelta(**value)
        except TypeError:
            raise ConfigError(f"trainer.max_time={value}: {EXPECTED}") from None
    if not allowed:
        raise ConfigError(f"trainer.max_time={value}: no time to train in, {EXPECTED}")
    return allowed


def cut_short(trainer: L.Trainer, phase: str) -> dict[str, Any] | None:
    """The round at which ``max_time`` ended a fit, also printed on rank 0; None if the fit ran to its end."""
    done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    wanted = int(trainer.num_training_batches) * (trainer.max_epochs or 0)
    over = any(isinstance(c, Timer) and (c.time_remaining() or 0) <= 0 for c in trainer.callbacks)  # type: ignore[attr-defined]
    if done >= wanted or not over:
        return None
    if trainer.is_global_zero:
        print(f"{phase}: ended by trainer.max_time after round {done} of {wanted}", file=sys.stderr, flush=True)
    return {"by": "max_time", "round": done, "of": wanted}
