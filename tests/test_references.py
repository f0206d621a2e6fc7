"""Overrides below a reference change the student's fit only; trainer's settings are honoured or refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import composed, composition
from lightning.pytorch.callbacks import EarlyStopping

from kd_lightning.config.check import faults
from kd_lightning.config.overrides import read
from kd_lightning.engine.fit import fit_config
from kd_lightning.engine.user_callbacks import callbacks_of
from kd_lightning.errors import ConfigError


@pytest.mark.parametrize("method", ["kd", "supervised", "fs_bbt"])
def test_the_learning_rate_of_the_students_fit(method: str) -> None:
    own = composition(f"method={method}", "controls=none", "method.optimizer.lr=0.0123")
    assert own.method["optimizer"]["lr"] == 0.0123
    assert own.teacher is not None
    assert own.teacher.training is not None
    assert own.teacher.training.method["optimizer"]["lr"] != 0.0123


def test_the_copy_has_the_other_overrides_in_any_order_and_controls_follow() -> None:
    cfg = composed(
        "method=kd", "method.optimizer.lr=0.5", "data.recipe.optimizer.lr=0.25", "+data.recipe.optimizer.eps=1.0"
    )
    assert (cfg.method.optimizer.lr, cfg.method.optimizer.eps) == (0.5, 1.0)
    assert cfg.teacher.fit.method.optimizer.lr == 0.25
    assert cfg.controls.noise.method.optimizer.lr == 0.5


def test_below_a_reference_in_a_list() -> None:
    found = read(["method=rdskd", "stages.0.trainer.max_epochs=2"])
    assert not found.problems
    assert found.cfg.stages[0].trainer.max_epochs == 2


def test_a_wrong_key_below_a_reference_is_named() -> None:
    found = read(["method=kd", "controls=none", "method.optimizer.lrr=0.1"])
    assert any("method.optimizer.lrr" in line for line in [*found.problems, *found.unset, *faults(found.cfg)])


EARLY = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: %s, patience: 0, mode: max, min_delta: 2.0}"
CYCLE = "{_target_: torch.optim.lr_scheduler.OneCycleLR, _partial_: true, max_lr: 0.01, total_steps: %d}"
UP_AND_DOWN = "{_target_: torch.optim.lr_scheduler.CyclicLR, _partial_: true, base_lr: 0.001, max_lr: 0.01}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+trainer.logger={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: x}", "logger=tensorboard"),
        ("+trainer.default_root_dir=elsewhere", r"hydra\.run\.dir=DIR"),
        ("+trainer.callbacks=[{_target_: lightning.pytorch.callbacks.ModelCheckpoint}]", "ModelCheckpoint is left out"),
        ("trainer.log_every_n_steps=5", r"set \+method\.log_every=N"),
        ("+trainer.gradient_clip_algorithm=value", r"method\.clip"),
        ("+trainer.fast_dev_run=true", "plan=true tries every fit"),
        ("+trainer.overfit_batches=3", r"\+trainer\.limit_train_batches"),
        (f"method.scheduler={UP_AND_DOWN}", r"there are 12 .* before its cycle does: set .*step_size_up=6"),
        (f"method.scheduler={CYCLE % 360}", r"stepped once an epoch, and there are 12 .*total_steps=12"),
        (
            "method.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}",
            "ReduceLROnPlateau asks for metrics at every step",
        ),
        ("seed=-1", "expected a number from 0"),
    ],
)
def test_a_setting_that_would_be_dropped_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        composition("method=kd", "controls=none", "trainer.max_epochs=12", override)


def test_a_cycle_of_as_many_epochs_is_taken() -> None:
    assert composition("method=kd", "controls=none", "trainer.max_epochs=12", f"method.scheduler={CYCLE % 12}")


def test_callbacks_belong_to_the_key_and_monitor_what_is_measured(tmp_path: Any) -> None:
    plain, early = (
        composition("method=kd", "controls=none", *more)
        for more in ((), (f"+trainer.callbacks=[{EARLY % 'val/accuracy'}]",))
    )
    bench: Any = SimpleNamespace(store=SimpleNamespace(root=tmp_path), data_key="data")
    assert fit_config(plain, bench, "t") != fit_config(early, bench, "t")
    method: Any = SimpleNamespace(trains_student=True, validates=False, metrics={"accuracy": None})
    (made,) = callbacks_of(early.trainer, method, "student")
    assert isinstance(made, EarlyStopping)
    wrong = early.trainer.replace(callbacks=[{**early.trainer["callbacks"][0], "monitor": "val/nonsense"}])
    with pytest.raises(ConfigError, match=r"monitors val/nonsense, .* measures val/accuracy, val/agreement"):
        callbacks_of(wrong, method, "student")


def test_early_stopping_stops_early_and_the_result_says_so(tiny: Callable[..., Any]) -> None:
    settings = ("method=kd", "trainer.max_epochs=5", f"+trainer.callbacks=[{EARLY % 'val/accuracy'}]")
    result = tiny(*settings, "+trainer.enable_progress_bar=false", "teacher.fit.trainer.max_epochs=1")
    assert any("a callback ended the fit after epoch 2 of 5" in line for line in result["warnings"])
