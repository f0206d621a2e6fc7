"""What is wrong with the settings of a trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kd_lightning.config.node import UNKNOWN
from kd_lightning.config.ranks import rank_faults
from kd_lightning.config.schedules import callback_faults
from kd_lightning.config.signatures import as_dict, at
from kd_lightning.core.time_limit import duration
from kd_lightning.errors import ConfigError

FORBIDDEN_TRAINER = {
    "max_steps": "it counts every optimiser's steps together; set trainer.max_epochs and source.rounds",
    "gradient_clip_val": "methods optimise by hand and clip by a setting of their own, such as method.clip",
    "logger": "dashboards are a group of their own, such as logger=tensorboard or logger=wandb",
    "default_root_dir": "a run writes to hydra.run.dir=DIR, and keeps its work in artifacts.root=DIR",
    "gradient_clip_algorithm": "methods clip by a setting of their own, such as method.clip",
    "log_every_n_steps": "methods write their curves by themselves; set +method.log_every=N",
    "fast_dev_run": "it leaves out the files of a run; plan=true tries every fit, debug=smoke is a short run",
    "overfit_batches": "batches are drawn anew; +trainer.limit_train_batches makes an epoch shorter",
    "barebones": "it leaves out the files of a run",
    "accumulate_grad_batches": "methods optimise by hand; raise the batch size, or method.accumulate where it exists",
}


def partial_trainers(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings of the trainer that the teacher's fit, the controls and the stages change."""
    places = {"teacher.fit": at(plain, "teacher.fit")}
    places |= {f"controls.{name}": node for name, node in as_dict(plain.get("controls")).items()}
    places |= {f"stages[{i}]": stage for i, stage in enumerate(plain.get("stages") or [])}
    for path, node in places.items():
        if isinstance(own := as_dict(node).get("trainer"), dict) and "_target_" not in own:
            yield f"{path}.trainer", {**own, "_target_": "lightning.Trainer", "_partial_": True}


def trainer_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """One line for each setting of any trainer that does not suit a run."""
    for path, trainer in [("trainer", as_dict(plain.get("trainer"))), *partial_trainers(plain)]:
        for key, why in FORBIDDEN_TRAINER.items():
            value = trainer.get(key)
            nothing = {"accumulate_grad_batches": 1, "log_every_n_steps": 1_000_000}
            if value not in (None, -1, False, UNKNOWN) and value != nothing.get(key, UNKNOWN):
                yield f"{path}.{key}={value}: {why}"
        if trainer.get("max_epochs") == -1:
            yield f"{path}.max_epochs=-1: a fit has an end; give the number of epochs"
        yield from rank_faults(path, trainer)
        yield from callback_faults(path, trainer)
        if (allowed := trainer.get("max_time")) is not UNKNOWN:
            try:
                duration(allowed)
            except ConfigError as error:
                yield str(error).replace("trainer", path, 1)
