"""A fit that its time ends leaves a student, a result and a word about it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, composed

from kd_lightning.cli.summary import summary
from kd_lightning.config.check import faults
from kd_lightning.core.time_limit import duration
from kd_lightning.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:00:20", 20), ("1:02:03", 3723), ("01:00:00:00", 86400), ({"minutes": 2}, 120), (timedelta(seconds=5), 5)],
)
def test_times_that_are_understood(text: Any, seconds: int) -> None:
    assert duration(text) == timedelta(seconds=seconds)
    assert duration(None) is None


@pytest.mark.parametrize("text", ["20min", "00:20", "00:00:00", 20, {"fortnights": 1}])
def test_times_that_are_not(text: Any) -> None:
    with pytest.raises(ConfigError, match="HH:MM:SS"):
        duration(text)


def test_a_wrong_time_is_named_before_anything_runs() -> None:
    assert faults(composed("method=dafl", *TINY, "trainer.max_time=00:01:00")) == []
    (fault,) = faults(composed("method=dafl", *TINY, "trainer.max_time=soon"))
    assert fault.startswith("trainer.max_time=soon: expected HH:MM:SS")


@pytest.mark.slow
def test_time_ends_a_fit_with_a_valid_result(tiny: Callable[..., Any], teacher_file: Path, capsys: Any) -> None:
    settings = (f"teacher.weights={teacher_file}", "trainer.max_epochs=100000", "source.rounds=1")
    result = tiny("trainer.max_time=00:00:01", *settings)
    ended = result["ended_by"]["student"]
    assert result["status"] == "ok"
    assert (ended["by"], ended["of"]) == ("max_time", 100000)
    assert 0 < ended["round"] < 100000
    assert f"ended by trainer.max_time after round {ended['round']} of 100000" in capsys.readouterr().err
    assert f"student by max_time at round {ended['round']:,} of 100,000" in summary(result)
    checkpoint = torch.load(result.folder / "last.ckpt", weights_only=True)
    kept = {k.removeprefix("student."): v for k, v in checkpoint["state_dict"].items() if k.startswith("student.")}
    student = open_saved(result.folder)
    assert all(torch.equal(kept[k], v) for k, v in student.items())
    rows = (result.folder / "metrics.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert int(last["round"]) == ended["round"] - 1
    assert last["val/accuracy"], "validated when it ended"
    assert (result.folder / "samples" / f"generated_{ended['round']:04d}.png").is_file(), "drawn when it ended"


def open_saved(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "student.safetensors")
