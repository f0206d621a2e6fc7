"""The fits beside the student's: stages before it, controls after it, and what they are handed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from kd_lightning.config.derive import variant
from kd_lightning.core.schedules import Stretched
from kd_lightning.core.tasks import Task
from kd_lightning.data.dataset import Dataset
from kd_lightning.distributed import collectives
from kd_lightning.engine.fit import Fitted
from kd_lightning.run.teacher import Obtained

STRETCHED = f"{Stretched.__module__}.{Stretched.__name__}"


def stage_of(cfg: DictConfig, stage: DictConfig, stages: Mapping[str, Fitted]) -> DictConfig:
    """The composition of a stage, those before it trained."""
    return referring(_own(cfg, stage), stages)


def _own(cfg: DictConfig, node: Mapping[Any, Any]) -> DictConfig:
    return variant(cfg, {str(k): v for k, v in node.items() if k not in ("name", "updates", "teacher")})


def referring(cfg: DictConfig, stages: Mapping[str, Fitted]) -> DictConfig:
    """``cfg`` with every ``stage:NAME/FILE`` replaced by the path of that file, as far as the stages have run."""

    def replaced(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: replaced(v) for k, v in node.items()}
        if isinstance(node, list):
            return [replaced(v) for v in node]
        if isinstance(node, str) and node.startswith("stage:"):
            name, _, file = node.removeprefix("stage:").partition("/")
            return str(stages[name].folder / file) if name in stages else node  # a later word's, of a later stage
        return node

    return OmegaConf.create(replaced(OmegaConf.to_container(cfg))) if stages else cfg


def control_of(
    node: DictConfig, cfg: DictConfig, dataset: Dataset, teacher: Obtained | None, student: Fitted
) -> DictConfig | None:
    """The student's network trained another way; None where it cannot be, such as real labels without data."""
    own = _own(cfg, node)
    if node.get("updates") == "student":
        _as_long(own, student.report["student_updates"], dataset)
    if asks(node) and (teacher is None or not teacher.white):
        return None
    if not asks(node) and dataset.train is None:
        return None
    return own


def _as_long(own: DictConfig, updates: int, dataset: Dataset) -> None:
    """Let a control have as many updates: in rounds of its own length, or by more passes over the real images.

    The learning rate keeps the shape of its schedule.
    """
    if own.source.get("rounds") is not None:
        own.source.rounds = max(1, round(updates / own.trainer.max_epochs))
    elif dataset.train is not None:
        each = max(1, len(dataset.train) // (own.source.batch_size * collectives.world()))
        before, old = _schedules(own), own.trainer.max_epochs
        own.trainer.max_epochs = max(1, round(updates / each))
        for key, schedule in _schedules(own).items():
            if not _followed(before[key], schedule):
                by = own.trainer.max_epochs / old
                own.method[key] = {"_target_": STRETCHED, "_partial_": True, "schedule": before[key], "by": by}


def _schedules(own: DictConfig) -> dict[str, dict[str, Any]]:
    """Of the optimisers of a method, resolved."""
    keys = [key for key in own.method if str(key).startswith("scheduler") and own.method[key] is not None]
    return {key: cast(dict[str, Any], OmegaConf.to_container(own.method[key], resolve=True)) for key in keys}


def _followed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether every length in a schedule became another one by itself, as ``T_max: ${trainer.max_epochs}`` does."""
    lengths = [key for key, value in before.items() if isinstance(value, int | list) and not isinstance(value, bool)]
    return bool(lengths) and all(before[key] != after[key] for key in lengths)


def asks(node: Mapping[Any, Any]) -> bool:
    """Whether a stage or a control has the teacher; with ``teacher: false``, two that are alike are one fit."""
    return bool(node.get("teacher", True))


def handed(
    teacher: Obtained | None, node: Mapping[Any, Any] = MappingProxyType({}), source_teacher: Obtained | None = None
) -> dict[str, Any]:
    """The teachers as a fit is given them: objects of its own, whose counters begin at zero.

    Args:
        teacher: of the run, for those who ask it.
        node: the stage or control.
        source_teacher: of the fit's source, if it has one of its own.
    """
    given = {"teacher": teacher.hand_out(), "teacher_key": teacher.key} if teacher and asks(node) else {}
    if source_teacher:
        given |= {"source_teacher": source_teacher.hand_out(), "source_teacher_key": source_teacher.key}
    return given


def weak_teacher(controls: Mapping[str, Any], metrics: Mapping[str, float | None], task: Task) -> str | None:
    """What to say where the student's network, trained without the teacher, is as good as the teacher."""
    teacher = metrics.get(f"teacher/{task.headline}")
    for name, node in controls.items():
        alone = metrics.get(f"{name}/{task.headline}")
        elsewhere = "load" in node.get("source", {})  # it learned from other images
        if asks(node) or elsewhere or teacher is None or alone is None:
            continue
        if (alone >= teacher) if task.higher_is_better else (alone <= teacher):
            return (
                f"the teacher's {task.headline}, {teacher:.4g}, is no better than that of {name}, {alone:.4g}, which "
                "had no teacher: it has little to teach. Train it longer, or choose another"
            )
    return None
