"""What outputs and labels mean: the spaces of numbers, their loss and metrics, and how a task is written down."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.core.tasks import Classification, Regression, evaluate, task_of
from kd_lightning.errors import ConfigError, DataError

STEERING = Regression(low=-88.13, high=97.92, unit="degrees")
AGES = Regression(low=0, high=60, unit="years", floored=True)


def test_steering_angles_are_normalised_as_published() -> None:
    zero, one, top, bottom = STEERING.normalise(torch.tensor([0.0, 1.0, 97.92, -88.13])).tolist()
    assert zero == pytest.approx(0.473690, abs=1e-6)
    assert one - zero == pytest.approx(0.005375, abs=1e-6)
    assert (top, bottom) == (pytest.approx(1, abs=1e-6), pytest.approx(0, abs=1e-6))
    labels = torch.linspace(-88.13, 97.92, 1000)
    torch.testing.assert_close(STEERING.denormalise(STEERING.normalise(labels)), labels, atol=2e-5, rtol=0)


def test_whole_ages_survive_the_round_trip_in_float32_to_the_bit() -> None:
    ages = torch.arange(1, 61).float()
    assert torch.equal(AGES.denormalise(AGES.normalise(ages)), ages)


def test_numbers_stay_within_the_range_and_losses_see_what_is_outside() -> None:
    output = torch.tensor([[-0.5], [0.25], [1.5]])
    assert AGES.numbers(output).tolist() == [0, 15, 60]
    labels = torch.tensor([0.0, 30.0, 60.0])
    assert float(AGES.loss(output, labels)) == pytest.approx((0.25 + 0.0625 + 0.25) / 3)
    assert AGES.loss(output.bfloat16(), labels).dtype == torch.float32


def test_mae_agreement_and_floored_mae_are_in_the_unit() -> None:
    labels = torch.tensor([10.0, 20.0, 30.0, 40.0])
    student = AGES.normalise(labels + torch.tensor([1.5, -1.5, 0.5, 0.0]))[:, None]
    teacher = AGES.normalise(labels + 3)[:, None]
    found = evaluate(AGES, student, labels, teacher)
    assert found["mae"] == pytest.approx(3.5 / 4, abs=1e-4)
    assert found["mae_floored"] == pytest.approx((1 + 2 + 0 + 0) / 4)
    assert found["agreement"] == pytest.approx((1.5 + 4.5 + 2.5 + 3) / 4, abs=1e-4)
    assert evaluate(AGES, student, None, None) == {"mae": None, "mae_floored": None, "agreement": None}
    assert "mae_floored" not in STEERING.metrics()


def test_a_metric_over_batches_is_that_of_all_images() -> None:
    torch.manual_seed(0)
    output, labels = torch.rand(100, 1), torch.rand(100) * 60
    metric = AGES.metrics()["mae"]
    for x, y in zip(output.split(30), labels.split(30), strict=True):  # the last one is smaller
        metric.update(x, y)
    assert float(metric.compute()) == pytest.approx(float((output[:, 0] * 60 - labels).abs().mean()), rel=1e-5)


def test_a_nan_is_not_hidden() -> None:
    assert math.isnan(evaluate(AGES, torch.tensor([[float("nan")], [0.5]]), torch.tensor([1.0, 2.0]), None)["mae"] or 0)
    assert AGES.loss(torch.tensor([[float("nan")]]), torch.tensor([1.0])).isnan()


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 1)])
def test_outputs_of_another_shape_are_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"answers \(N, 1\), got"):
        AGES.loss(torch.zeros(shape), torch.zeros(3))


def test_labels_outside_the_range_are_named_and_counted() -> None:
    AGES.check_labels("toy/train", torch.tensor([0.0, 60.0004]))  # rounding
    with pytest.raises(DataError, match=r"toy/train: label 61 outside 0 to 60 years, 2 such.*data\.task\.high"):
        AGES.check_labels("toy/train", torch.tensor([1.0, 61.0, 116.0]))
    with pytest.raises(DataError, match="label nan outside"):
        AGES.check_labels("toy/train", torch.tensor([float("nan")]))
    with pytest.raises(DataError, match=r"labels are torch\.int64 \(2,\), expected floats"):
        AGES.check_labels("toy/train", torch.tensor([1, 2]))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (0, float("inf"))])
def test_a_range_without_inside_is_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.task: low=.*low < high"):
        Regression(low=low, high=high, unit="m")


def test_a_task_is_read_back_from_a_card() -> None:
    for task in (STEERING, AGES, Classification(7)):
        again = task_of({"task": task.described()})
        assert type(again) is type(task)
        assert vars(again) == vars(task)
    old = task_of({"classes": ["ant", "bee"]})
    assert isinstance(old, Classification)
    assert old.outputs == 2


def test_classes_are_as_they_were() -> None:
    torch.manual_seed(0)
    logits, labels, task = torch.randn(50, 4), torch.randint(4, (50,)), Classification(4)
    assert float(task.loss(logits, labels)) == float(F.cross_entropy(logits, labels))
    found = evaluate(task, logits, labels, logits.flip(0))
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found["agreement"] == pytest.approx(float((logits.argmax(1) == logits.flip(0).argmax(1)).float().mean()))
