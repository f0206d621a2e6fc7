"""What a user sees of warnings."""

from __future__ import annotations

import warnings

import pytest

from kd_lightning import quiet


def test_our_warnings_are_a_line_and_others_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", lambda m, c, file, number, line=None: f"{file}:{number}: {m}")
    quiet.plain_warnings()
    assert warnings.formatwarning("too few", UserWarning, quiet.__file__, 3) == "warning: too few\n"
    assert warnings.formatwarning("too few", UserWarning, "/elsewhere/run.py", 3) == "/elsewhere/run.py:3: too few"
