"""Networks, metrics and classes of somebody's own in a configuration."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import composition
from torch import nn
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassF1Score

from kd_lightning.cli.summary import summary
from kd_lightning.config.check import faults
from kd_lightning.config.overrides import read
from kd_lightning.config.signatures import signature_faults
from kd_lightning.core.own_metrics import add, values
from kd_lightning.core.tasks import Classification, Regression
from kd_lightning.errors import ConfigError


class Own(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()


class Forwards(MulticlassF1Score):
    """Forwards what it is given, as torchmetrics' and transformers' classes do."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@pytest.mark.slow
def test_a_network_in_the_place_of_another_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as refusal:
        composition("method=kd", "controls=none", f"student._target_={__name__}.Own")
    (line,) = str(refusal.value).splitlines()[1:]
    assert "has none of the settings widths, batch_norm, in_channels" in line
    assert "my_conf/network/mine.yaml" in line
    (line,) = read(["student=my_net.Net"]).problems
    assert "my_conf/network/mine.yaml with _target_: my_net.Net" in line


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """As transformers' configurations are: the wrapper takes more than the signature it shows."""

    @functools.wraps(init)
    def wrapper(self: Any, **kwargs: Any) -> None:
        self.given = kwargs
        init(self, **{k: v for k, v in kwargs.items() if k == "num_classes"})

    return wrapper


class Wrapped:
    @checked
    def __init__(self, *, num_classes: int = 3) -> None:
        self.num_classes = num_classes


def test_a_wrapper_may_take_settings_that_it_does_not_name() -> None:
    node = {"_target_": f"{__name__}.Wrapped", "num_labels": 10}
    assert not list(signature_faults("student.config", node, []))
    assert list(signature_faults("student", {"_target_": f"{__name__}.Own", "num_classes": 3, "num_labels": 10}, []))


F1 = f"+metrics.f1={{_target_: {__name__}.Forwards, num_classes: 10, average: macro}}"


def test_classes_that_forward_their_settings_are_accepted() -> None:
    assert composition("method=kd", "controls=none", F1).metrics["f1"]["average"] == "macro"


RECALL = "+metrics.recall={_target_: torchmetrics.classification.MulticlassRecall, num_classes: 10, average: null}"


def test_any_torchmetrics_metric_is_in_the_curves_the_result_and_the_summary(tiny: Callable[..., Any]) -> None:
    settings = ("method=supervised", "teacher=none", "trainer.max_epochs=1")
    result = tiny(*settings, F1, RECALL)
    assert 0 <= result["metrics"]["f1"] <= 1
    assert {f"recall/{c}" for c in range(10)} < result["metrics"].keys()
    (columns, *rows) = csv.reader((result.folder / "metrics.csv").read_text().splitlines())
    assert {"val/f1", "val/recall/9"} < {*columns}
    assert 0 <= float(rows[-1][columns.index("val/f1")]) <= 1
    assert "further metrics: f1 0." in summary(result)


def test_metrics_of_numbers_get_numbers_in_their_unit() -> None:
    metric = MeanAbsoluteError()
    add("mae", metric, Regression(low=0, high=90, unit="degrees"), torch.tensor([[0.5]]), torch.tensor([44.0]))
    assert values("mae", metric, []) == {"mae": 1.0}
    with pytest.raises(ConfigError, match=r"metrics\.f1: .* does not take outputs \(1, 2\) and labels \(1,\)"):
        add("f1", MulticlassF1Score(10), Classification(2), torch.zeros(1, 2), torch.tensor([0]))


def test_one_class_is_nothing_to_tell_apart() -> None:
    wrong = faults(read(["data=none", "data.num_classes=1", "method=dafl", "teacher=none"]).cfg)
    assert any("data.num_classes=1: with one class" in line for line in wrong)
