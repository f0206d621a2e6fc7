"""Compositions: frozen dataclasses of plain data, built once, right after the check.

The trainings of the stages, the controls and the teacher are part of a composition and complete before anything runs.
Every ``${...}`` is resolved; only ``stage:NAME/FILE`` is replaced later, when that stage has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

from kd_lightning.config.node import Node, freeze, thaw
from kd_lightning.core.schedules import Stretched
from kd_lightning.distributed.device import device_of
from kd_lightning.store.files import digest

Keys = tuple[str | int, ...]
"""Path to a value; the first key is a field of :class:`Training`."""

ROUNDS: Keys = ("source", "rounds")
EPOCHS: Keys = ("trainer", "max_epochs")
STRETCHED = f"{Stretched.__module__}.{Stretched.__name__}"


@dataclass(frozen=True)
class Data:
    """The data set: ``load`` reads it, the other fields describe its images.

    ``size`` is the side of a square, or height and width.
    """

    load: Node
    num_classes: int
    channels: int
    size: int | tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


OWN, TUNE = "own", "tune"
"""``teacher.weights`` for a network that brings them: as they are, or trained on."""


@dataclass(frozen=True)
class TeacherSettings:
    """The teacher and its access level; ``conf/teacher/none.yaml`` explains each setting.

    ``training`` is the training of ``net`` if it has no weights.
    """

    net: Node | None
    client: Node | None
    weights: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_order: tuple[int, ...] | None
    outputs: str
    size: int | tuple[int, int] | None
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
    """Memory format, compilation and folding of batch norms."""

    memory_format: str
    compile: str | None
    fold_batchnorm: bool


@dataclass(frozen=True)
class Artifacts:
    """Folder of the store, whether stored results are reused, and which are not: ``student`` or ``all``."""

    root: str | None
    reuse: bool
    scope: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that one fit is made of.

    Args:
        data: images, labels and task.
        source: what the method trains on.
        student: the network that is trained.
        method: the distillation method.
        trainer: Lightning's trainer.
        runtime: how networks are run.
        seed: seed of the fit.
        init: file of weights that the student starts from.
        source_teacher: the source's own teacher, if it does not ask the run's.
        asks: whether the fit gets a teacher.
        taught_by: the stage whose student is that teacher; None for the run's.
        stretch: for a control with as many updates as the student, paths to the settings that then grow: its rounds
            or epochs first, then those equal to them, such as the length of a schedule.
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
    taught_by: str | None = field(default=None, metadata={"unless": None})
    stretch: tuple[Keys, ...] = ()

    @property
    def device(self) -> str:
        """The device that batches are moved to."""
        return device_of(self.trainer.settings)

    def plain(self) -> dict[str, Any]:
        """The training as nested dicts and lists."""
        return thaw(self)

    def digest(self) -> str:
        """Digest of the training, independent of the order of keys."""
        return digest(self.plain())

    def derive(self, **words: Any) -> Self:
        """A copy with some fields replaced."""
        return replace(self, **words)

    def after(self, stage: str, folder: Path) -> Self:
        """A copy with the path of the file in ``folder`` in place of every ``stage:NAME/FILE`` of this stage."""

        def found(text: str) -> str:
            name, _, file = text.removeprefix("stage:").partition("/")
            return str(folder / file) if text.startswith("stage:") and name == stage else text

        return _with_texts(self, found)

    def with_file(self, text: str, file: str) -> Self:
        """A copy with ``file`` in place of every setting that is ``text``, such as ``stage:NAME/FILE``."""
        return _with_texts(self, lambda found: file if found == text else found)

    def stretched(self, updates: int, images: int | None, world: int) -> Self:
        """A copy with as many updates as the student, by more rounds or epochs; ``self`` if ``stretch`` is empty.

        Args:
            updates: number of the student's updates.
            images: number of real training images, for a source that does not say how many it has; None if there are
                none.
            world: number of ranks that share them.
        """
        if self.stretch[:1] == (ROUNDS,):
            each = self.trainer["max_epochs"]
        elif self.stretch and (number := self.source.get("images") or images) is not None:
            each = max(1, number // (self.source["batch_size"] * world))
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
    """Everything that a run is made of: the student's training, the teacher, further trainings and metrics.

    Args:
        teacher: the teacher, or None.
        stages: trainings before the student's, by name.
        controls: trainings to compare the student with, by name.
        metrics: further metrics of the student, by name.
        logger: dashboards, by name.
        paper: the paper's numbers, by method.
        as_published: whether these are the paper's settings, so that the paper's numbers belong beside the result.
        result_name: another name of the student's metrics in the result.
        names: the chosen members of the groups.
        artifacts: folder and use of the store.
        record: the whole configuration in plain values, saved for other commands; does not change the result.
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

    @property
    def teaching(self) -> list[str]:
        """The stages whose student teaches another fit, in order."""
        taught_by = {fit.taught_by for fit in (self, *self.stages.values(), *self.controls.values())}
        return [name for name in self.stages if name in taught_by]

    def everywhere(self, change: Callable[[Any], Any]) -> Composition:
        """A copy with ``change`` applied to the student's training and to all others."""
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
        before: the method for the original number of epochs.
        after: the method with every setting that equals the number of epochs changed.
        by: factor of the number of epochs.
    """
    kept = {
        key: {"_target_": STRETCHED, "_partial_": True, "schedule": schedule, "by": by}
        for key, schedule in before.settings.items()
        if str(key).startswith("scheduler") and schedule is not None and not _followed(schedule, after[key])
    }
    return after.replace(**kept)


def _followed(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether every length in a schedule has changed with the epochs, as ``T_max: ${trainer.max_epochs}`` does."""
    lengths = [key for key, value in before.items() if isinstance(value, int | tuple) and not isinstance(value, bool)]
    return bool(lengths) and all(before[key] != after[key] for key in lengths)


def _put(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``."""
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
