"""A warning that matters is part of the result, the summary and the table, also when a stored result is reprinted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.cli.summary import summary
from kd_lightning.core.notices import keep, notice, noticing
from kd_lightning.core.tasks import Classification, Regression
from kd_lightning.data.dataset import Dataset
from kd_lightning.metrics.shortcomings import shortcomings
from kd_lightning.results.table import warned
from kd_lightning.run.run import _notice_data

NAMES = ["cat", "dog", "frog"]
LABELS = torch.tensor([0, 1, 2] * 20)


def said(answers: list[int]) -> str:
    output = torch.nn.functional.one_hot(torch.tensor(answers), 3).float()
    return "\n".join(shortcomings(Classification(3), output, LABELS, NAMES))


def test_a_student_that_learned_has_no_shortcoming() -> None:
    assert said(LABELS.tolist()) == ""


def test_a_constant_student_is_said() -> None:
    assert "is constant: it names dog for every test image" in said([1] * 60)
    assert "at chance" in said([1] * 60)


def test_a_class_that_is_never_named_is_said() -> None:
    lines = said([0, 1, 0] * 20)
    assert "never names frog" in lines
    assert "at chance" not in lines


def test_accuracy_at_chance_is_said() -> None:
    assert "0.350, is at chance" in said([0, 1, 2, 1, 2, 0, 2, 0, 1] * 6 + [0, 1, 2, 1, 2, 0])


def test_constant_numbers_are_said() -> None:
    task = Regression(low=0.0, high=10.0, unit="metres")
    lines = list(shortcomings(task, torch.full((3, 1), 0.5), torch.tensor([1.0, 5.0, 9.0]), []))
    assert lines == ["the student is constant: it tells 5 metres of every test image"]


def test_what_is_noticed_is_heard_by_all_around() -> None:
    with noticing() as outer:
        with noticing() as inner, pytest.warns(UserWarning, match="loud"):
            notice("loud")
        keep("quiet")
        keep("quiet")
    assert (inner, outer) == (["loud"], ["loud", "quiet"])


def test_a_warning_stands_in_the_result_and_in_the_stored_one(tiny: Callable[..., Any]) -> None:
    with noticing() as around:
        first, again = tiny("trainer.max_epochs=1"), tiny("trainer.max_epochs=1")
    assert again["stored"]
    assert first["warnings"] == again["warnings"]
    assert any("the student" in line for line in first["warnings"]), "a few rounds teach nothing"
    assert set(first["warnings"]) <= set(around)
    assert f"warning: {first['warnings'][0]}" in summary(again)


def test_a_table_says_each_warning_once() -> None:
    runs: Any = [Namespace(f"runs/{i}", {"warnings": ["the student is constant"]}) for i in range(3)]
    assert warned(runs) == ["warning: runs/0 and 2 more: the student is constant"]


class Namespace:
    def __init__(self, folder: str, result: dict[str, Any]) -> None:
        self.folder, self.result = Path(folder), result


def test_what_may_be_misread_is_said_and_kept() -> None:
    doubtful = Dataset("mine", ["a", "b"], None, None, None, "folders", "png", doubts=("x was left out",))
    with noticing() as heard, pytest.warns(UserWarning, match="x was left out"):
        _notice_data(doubtful)
    assert heard[0] == "x was left out"
