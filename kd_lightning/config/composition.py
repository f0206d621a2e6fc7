"""A composition as the run sees it: plain, frozen, built once and right after the check.

The fits beside the student's (stages, controls, the teacher's own training) are compositions, too, all of them expanded
before anything runs. Every ``${...}`` is resolved; only ``stage:NAME/FILE`` stays open until that stage has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

from kd_lightning.config.node import Node, freeze, thaw
from kd_lightning.core.schedules import Stretched
from kd_lightning.distributed.device import device_of
from kd_lightning.store.artifacts import digest

Keys = tuple[str | int, ...]
"""Lead to a value, a word first."""

ROUNDS: Keys = ("source", "rounds")
EPOCHS: Keys = ("trainer", "max_epochs")
STRETCHED = f"{Stretched.__module__}.{Stretched.__name__}"


@dataclass(frozen=True)
class Data:
    """Which images: ``load`` reads them, the rest is what they are like."""

    load: Node
    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class TeacherSettings:
    """Who answers, and how much of it may be touched; ``conf/teacher/none.yaml`` says what each setting is.

    ``training`` is how ``net`` is trained where it has no weights.
    """

    net: Node | None
    client: Node | None
    weights: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_order: tuple[int, ...] | None
    access: str
    decimals: int | None
    k: int
    abstain_below: float | None
    smoothing: float
    budget: int | None
    total_budget: int | None
    eval_budget: int
    price: float
    ledger: str | None
    min_coverage: float
    drift_checks: int | None
    reference: str | None
    pace: Node
    check: bool
    seed: int
    training: Training | None = None


@dataclass(frozen=True)
class Runtime:
    """How networks are laid out and run."""

    memory_format: str
    compile: str | None
    fold_batchnorm: bool


@dataclass(frozen=True)
class Artifacts:
    """Where what takes long is kept, and whether what lies there is used."""

    root: str | None
    reuse: bool


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one fit is made of.

    Args:
        data: which images, labels and task.
        source: what training may see.
        student: which network is trained.
        method: how.
        trainer: of Lightning.
        runtime: how networks are run.
        seed: of the fit.
        init: weights that the network starts from.
        source_teacher: whom the source asks, if not the run's teacher.
        asks: whether it is handed the run's teacher.
        stretch: of a control that is to have as many updates as the student, the keys that lead to what then grows:
            its rounds or its epochs first, then what is equal to them, such as the length of a schedule.
    """

    data: Data
    source: Node
    student: Node
    method: Node
    trainer: Node
    runtime: Runtime
    seed: int
    init: str | None
    source_teacher: TeacherSettings | None = None
    asks: bool = True
    stretch: tuple[Keys, ...] = ()

    @property
    def device(self) -> str:
        """Where its batches are wanted."""
        return device_of(self.trainer.settings)

    def plain(self) -> dict[str, Any]:
        """All of it in dicts and lists."""
        return thaw(self)

    def digest(self) -> str:
        """Of all of it, in whatever order it stands."""
        return digest(self.plain())

    def derive(self, **words: Any) -> Self:
        """The same with some words exchanged."""
        return replace(self, **words)

    def after(self, stage: str, folder: Path) -> Self:
        """The same when a stage has ended: where it stood for a file of that stage, ``stage:NAME/FILE`` is a path."""

        def found(text: str) -> str:
            name, _, file = text.removeprefix("stage:").partition("/")
            return str(folder / file) if text.startswith("stage:") and name == stage else text

        return _with_texts(self, found)

    def stretched(self, updates: int, images: int | None, world: int) -> Self:
        """With as many updates as the student, by more rounds or by more passes over the images; the same unless asked.

        Args:
            updates: of the student.
            images: real ones that there are; None without any.
            world: ranks that share them.
        """
        if self.stretch[:1] == (ROUNDS,):
            each = self.trainer["max_epochs"]
        elif self.stretch and images is not None:
            each = max(1, images // (self.source["batch_size"] * world))
        else:
            return self
        length = max(1, round(updates / each))
        words: dict[str, Any] = {}
        for word, *keys in self.stretch:
            words[str(word)] = _put(words.get(str(word), getattr(self, str(word))), keys, length)
        longer = self.derive(**words)
        if self.stretch[0] == ROUNDS:
            return longer
        return longer.derive(method=_with_schedules(self.method, longer.method, length / self.trainer["max_epochs"]))


@dataclass(frozen=True, kw_only=True)
class Composition(Training):
    """Everything that a run is made of: the student's training, its teacher, and what stands beside it.

    Args:
        teacher: who answers; None if nobody does.
        stages: trainings before the student's, by name.
        controls: trainings to compare it with, by name.
        metrics: further measures of the student, by name.
        logger: dashboards, by name.
        paper: the paper's numbers, by method.
        as_published: whether this is the paper's setting, beside which its numbers are shown.
        result_name: another name of the student's numbers in the result.
        names: the chosen members of the groups.
        artifacts: where what takes long is kept.
        record: the whole configuration in plain values, as it is left for others to read; determines nothing.
    """

    teacher: TeacherSettings | None
    stages: Mapping[str, Training]
    controls: Mapping[str, Training]
    metrics: Mapping[str, Node]
    logger: Mapping[str, Node]
    paper: Mapping[str, Mapping[str, float]]
    as_published: bool
    result_name: str | None
    names: Mapping[str, str | None]
    artifacts: Artifacts
    record: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def everywhere(self, change: Callable[[Any], Any]) -> Composition:
        """``change`` made in the student's training and in all others."""
        teacher = self.teacher
        if teacher is not None and teacher.training is not None:
            teacher = replace(teacher, training=change(teacher.training))
        stages, controls = (
            freeze({name: change(training) for name, training in beside.items()})
            for beside in (self.stages, self.controls)
        )
        return change(self.derive(teacher=teacher, stages=stages, controls=controls))


def _with_schedules(before: Node, after: Node, by: float) -> Node:
    """A method whose schedules keep their shape over ``by`` times as many epochs.

    Args:
        before: the method as it was.
        after: with every number changed that is equal to that of the epochs.
        by: how many times as many there are.
    """
    kept = {
        key: {"_target_": STRETCHED, "_partial_": True, "schedule": schedule, "by": by}
        for key, schedule in before.settings.items()
        if str(key).startswith("scheduler") and schedule is not None and not _followed(schedule, after[key])
    }
    return after.replace(**kept)


def _followed(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether every length in a schedule became another one by itself, as ``T_max: ${trainer.max_epochs}`` does."""
    lengths = [key for key, value in before.items() if isinstance(value, int | tuple) and not isinstance(value, bool)]
    return bool(lengths) and all(before[key] != after[key] for key in lengths)


def _put(value: Any, path: Sequence[Any], new: Any) -> Any:
    """``value`` with ``new`` where ``path`` leads."""
    if not path:
        return new
    if isinstance(value, Node):
        return replace(value, settings=_put(value.settings, path, new))
    key, *rest = path
    if isinstance(value, Mapping):
        return freeze({**value, key: _put(value.get(key), rest, new)})
    return tuple(_put(item, rest, new) if i == key else item for i, item in enumerate(value))


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {each.name: _with_texts(getattr(value, each.name), change) for each in fields(value)}
        return replace(cast(Any, value), **own)
    if isinstance(value, Mapping):
        return freeze({key: _with_texts(item, change) for key, item in value.items()})
    return tuple(_with_texts(item, change) for item in value) if isinstance(value, tuple) else value
