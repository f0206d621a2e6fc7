"""What a user sees of warnings."""

from __future__ import annotations

import warnings

import pytest
import torch

from kd_lightning.core import log_filters as quiet


def test_our_warnings_are_a_line_and_others_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", lambda m, c, file, number, line=None: f"{file}:{number}: {m}")
    quiet.plain_warnings()
    assert warnings.formatwarning("too few", UserWarning, quiet.__file__, 3) == "warning: too few\n"
    assert warnings.formatwarning("too few", UserWarning, "/elsewhere/run.py", 3) == "/elsewhere/run.py:3: too few"


def test_schedules_that_step_before_anything_is_learned_are_no_news() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet.quiet()
        schedule.step()
    assert not said
