"""A control of another length has the shape of its schedule, whatever the schedule is."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import composition
from torch.optim import SGD
from torch.optim import lr_scheduler as torchs

from kd_lightning.config.node import Node
from kd_lightning.core.optimizers import adam_on_convolutions
from kd_lightning.core.schedules import Stretched, piecewise
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.run.stages_and_controls import control_of

MAKES: dict[str, Any] = {
    "milestones": partial(torchs.MultiStepLR, milestones=[2, 5]),
    "every so often": partial(torchs.StepLR, step_size=3),
    "each epoch": partial(torchs.ExponentialLR, gamma=0.5),
    "warm-up": partial(torchs.LinearLR, start_factor=0.1, total_iters=4),
    "a function": partial(torchs.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)),
    "cosine": partial(torchs.CosineAnnealingLR, T_max=8),
    "ours": partial(piecewise, epochs=[2, 5], factors=[0.1, 0.01]),
}


def rates(make: Any, epochs: int) -> list[float]:
    """The learning rate in each epoch."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, seen = make(optimizer), []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("by", [1.0, 3.0, 2.5, 0.5])
def test_what_was_at_an_epoch_is_at_so_many_times_the_epoch(name: str, by: float) -> None:
    own, stretched = rates(MAKES[name], 8), rates(partial(Stretched, schedule=MAKES[name], by=by), int(8 * by))
    assert stretched == pytest.approx([own[int(epoch / by)] for epoch in range(int(8 * by))])


def test_it_goes_on_where_it_stopped() -> None:
    def some(epochs: int, state: dict[str, Any] | None = None) -> tuple[float, dict[str, Any]]:
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = Stretched(optimizer, schedule=MAKES["milestones"], by=2.5)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        for _ in range(epochs):
            optimizer.step()
            schedule.step()
        return schedule.get_last_lr()[0], {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}

    _, state = some(4)
    assert some(9, state)[0] == some(13)[0] == pytest.approx(0.01)


def control(experiment: str, updates: int, *overrides: str) -> Any:
    """The equal-update control of a cGAN-KD row with 1,280 real images."""
    whole = composition(f"experiment={experiment}", *overrides)
    real = Split(torch.zeros(1280, 1, 2, 2, dtype=torch.uint8), torch.zeros(1280))
    own = control_of(whole.controls["nokd_equal"], Dataset("toy", ["a"], real, None, None, "n", "n"), None, updates)
    assert own is not None
    return own


@pytest.mark.slow
def test_milestones_of_an_equal_update_control_are_where_those_of_its_student_are() -> None:
    """Steering's: 350 epochs with decays after 150 and 250, here of ten batches each in place of 60."""
    own = control("cgan_kd/steering_angle", 350 * 60)
    assert own.trainer["max_epochs"] == 6 * 350
    make = Node.of(own.method["scheduler"]).build()
    seen = rates(make, own.trainer["max_epochs"])
    assert [epoch for epoch, (a, b) in enumerate(pairwise(seen), 1) if b != a] == [900, 1500]


def test_a_schedule_that_refers_to_the_length_is_left_alone() -> None:
    own = control("cgan_kd/mnist_small", 50 * 62)
    assert own.method["scheduler"] == {
        "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
        "_partial_": True,
        "T_max": own.trainer["max_epochs"],
    }


def test_decay_is_of_convolutions_only() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
    optimizer = adam_on_convolutions(net.parameters(), lr=0.1, weight_decay=2e-4)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decays[id(p)] for p in net.parameters()] == [2e-4, 0, 0, 0, 0, 0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
