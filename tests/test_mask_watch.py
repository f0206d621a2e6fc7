"""Masks that show nothing, or everything, of a class are noticed, once, with what to try."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kd_lightning.core.collapse import Collapsed
from kd_lightning.engine.restart import TRIES, begin_again
from kd_lightning.errors import TrainingError
from kd_lightning.methods.counterfactual.mask_monitor import MASK_REMEDY, MaskMonitor


def masks(levels: dict[int, float]) -> tuple[Tensor, Tensor]:
    y = torch.tensor(list(levels)).repeat(4)
    return torch.tensor([levels[c] for c in y.tolist()]).view(-1, 1, 1, 1).expand(-1, 1, 6, 6), y


def looked(watch: MaskMonitor, *epochs: dict[int, float]) -> Collapsed | None:
    found = None
    for number, levels in enumerate(epochs, 1):
        watch.add(*masks(levels))
        found = watch.look(100 * number)
    return found


HEALTHY = {0: 0.2, 1: 0.07, 2: 0.9}


def test_healthy_masks_and_absent_classes_are_no_fault() -> None:
    assert looked(MaskMonitor(4), HEALTHY, HEALTHY, HEALTHY) is None


def test_what_has_collapsed_is_named() -> None:
    lost = {0: 0.001, 1: 0.97, 2: 0.2, 3: 0.01}
    found = looked(MaskMonitor(4), lost, lost)
    assert str(found) == (
        "the generator has collapsed (round 200): masks of class 1 are all ones: no background is left (mean 0.97); "
        "masks of classes 0, 3 are all zeros: no shape is left (mean 0.001 to 0.01)"
    )
    every = looked(MaskMonitor(2), {0: 0.99, 1: 0.99}, {0: 0.99, 1: 0.99})
    assert "masks of every class are all ones" in str(every)


def test_it_takes_epochs_in_a_row_of_the_same_class() -> None:
    zero, one = {0: 0.2, 1: 0.0}, {0: 1.0, 1: 0.2}
    assert looked(MaskMonitor(2), zero) is None
    assert looked(MaskMonitor(2), zero, one) is None
    assert looked(MaskMonitor(2), zero, {0: 0.2, 1: 0.2}, zero) is None
    assert looked(MaskMonitor(2), zero, zero) is not None
    assert looked(MaskMonitor(2, patience=1), zero) is not None


def test_means_are_of_the_images_since_the_last_look() -> None:
    watch = MaskMonitor(1, patience=1)
    watch.add(*masks({0: 0.0}))
    watch.add(*masks({0: 0.1}))
    assert watch.look(1) is None, "0.05 on average"
    watch.add(*masks({0: 0.0}))
    assert watch.look(2) is not None, "what was before does not count"


def test_it_is_said_once_over_resumes() -> None:
    watch, zero = MaskMonitor(1), {0: 0.0}
    looked(watch, zero)
    watch.add(*masks(zero))
    resumed = MaskMonitor(1)
    resumed.load_state_dict(watch.state_dict())
    with pytest.warns(UserWarning, match=r"class are all zeros.*Lower cgn\.method\.binary.*seed.*orthogonal"):
        resumed.tell(10, "warn")
    again = MaskMonitor(1)
    again.load_state_dict(resumed.state_dict())
    again.add(*masks(zero))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.tell(20, "warn")


def test_a_fit_that_restarts_is_ended_and_at_last_says_what_to_try(tmp_path: Path) -> None:
    watch = MaskMonitor(1, patience=1)
    watch.add(*masks({0: 0.0}))
    with pytest.raises(Collapsed) as ended:
        watch.tell(7, "restart")
    for seed in range(TRIES):
        begin_again(tmp_path, seed, ended.value)
    with pytest.raises(TrainingError, match=r"each of the seeds 0, 1, 2, 9\. Lower cgn\.method\.binary"):
        begin_again(tmp_path, 9, ended.value)


def test_the_first_rank_can_tell_the_others() -> None:
    told = pickle.loads(pickle.dumps(Collapsed(7, "grey", MASK_REMEDY)))
    assert (str(told), told.round, told.remedy) == ("the generator has collapsed (round 7): grey", 7, MASK_REMEDY)
