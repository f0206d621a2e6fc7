"""Classes whose images a discriminator always knows are named when a fit ends."""

from __future__ import annotations

import warnings

import pytest
import torch

from kd_lightning.methods.counterfactual.class_loss_monitor import ClassLossMonitor


def counted(watch: ClassLossMonitor, real: dict[int, float], made: dict[int, float]) -> ClassLossMonitor:
    sides = []
    for levels in (real, made):
        y = torch.tensor(list(levels)).repeat(4)
        sides += [torch.tensor([levels[k] for k in y.tolist()]), y]
    watch.add(*sides)
    return watch


def test_lost_classes_are_named_with_both_verdicts() -> None:
    watch = counted(ClassLossMonitor(4), {0: 0.9, 1: 0.6, 2: 1.0}, {0: 0.02, 1: 0.4, 2: 0.2, 3: 0.0})
    with pytest.warns(UserWarning, match=r"lost classes 0 \(0\.90 against 0\.02\), 2 \(1\.00 against 0\.20\): .* seed"):
        watch.tell()
    with pytest.warns(UserWarning, match=r"lost class 0 \(.*\): .* drawn of it from"):
        counted(ClassLossMonitor(1), {0: 1.0}, {0: 0.0}).tell()


def test_healthy_and_absent_classes_are_not_and_verdicts_are_means() -> None:
    watch = counted(ClassLossMonitor(3), {0: 1.0, 1: 0.5}, {0: 0.0, 2: 0.0})
    counted(watch, {0: 1.0, 1: 0.5}, {0: 0.6, 1: 0.5})
    assert watch.look() == {}, "0.7 apart on average; of the others one side was not seen"
    counted(watch, {0: 1.0}, {0: 0.0})
    assert watch.look() == {0: (1.0, 0.0)}, "what was before the last look does not count"


def test_what_was_counted_survives_in_a_checkpoint() -> None:
    resumed = ClassLossMonitor(2)
    resumed.load_state_dict(counted(ClassLossMonitor(2), {0: 1.0}, {0: 0.0}).state_dict())
    assert resumed.look() == {0: (1.0, 0.0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.tell()
