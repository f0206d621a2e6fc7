"""Builds the composition of a configuration: the student's training, and those of stages, controls and teacher.

A stage, a control and the teacher's training replace top-level keys of the configuration, and references are resolved
again: ``${trainer.max_epochs}`` is then a number of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.config.composition import (
    EPOCHS,
    ROUNDS,
    Artifacts,
    Composition,
    Data,
    Keys,
    Runtime,
    TeacherSettings,
    Training,
)
from kd_lightning.config.node import UNKNOWN, Node, freeze
from kd_lightning.config.reader import Reader
from kd_lightning.config.signatures import as_dict

REPLACED = ("source", "student", "method", "init")
MERGED = ("trainer", "teacher", "data")
OF_A_FIT = ("data", "source", "student", "method", "trainer", "seed", "init", *(f.name for f in fields(Runtime)))
"""Top-level keys that a fit reads."""
PROBE = 99_991
"""A number of rounds or epochs that no configuration has; marks the settings that follow it."""

STRETCHED = ("source", "student", "method", "trainer")

GENERATOR = "generator.safetensors"
"""What a stage that trains a generator keeps, to which ``stage:NAME/generator.safetensors`` refers."""

T = TypeVar("T")


def draft(cfg: DictConfig, plain: Mapping[str, Any], reader: Reader) -> Composition:
    """The composition of a configuration, with UNKNOWN in place of faulty values.

    Args:
        cfg: the configuration.
        plain: the same as nested dicts and lists.
        reader: resolves the configurations of the other fits, and collects the faults that occur only there.
    """
    teacher = as_dict(plain.get("teacher"))
    nobody = teacher.get("net", UNKNOWN) is None and teacher.get("client") is None
    composition = Composition(
        **_words(plain),
        taught_by=_taught(plain.get("taught_by"))["taught_by"],
        source_teacher=_source_teacher(cfg, "source.teacher", reader),
        teacher=None if nobody else _teacher(teacher, _teachers_training(cfg, teacher, reader)),
        stages=freeze(dict(_stages(cfg, reader))),
        controls=freeze(dict(_controls(cfg, reader))),
        metrics=_nodes(plain.get("metrics")),
        logger=_nodes(plain.get("logger")),
        paper=freeze(as_dict(plain.get("paper"))),
        as_published=bool(plain.get("as_published")),
        result_name=plain.get("result_name"),
        names=freeze(as_dict(plain.get("names"))),
        artifacts=_record(Artifacts, as_dict(plain.get("artifacts"))),
        record=freeze({key: value for key, value in plain.items() if key != "main"}),
    )
    for name, file in files_of_stages(plain).items():
        composition = composition.with_file(f"stage:{name}/{GENERATOR}", file)
    return composition


def files_of_stages(plain: Mapping[str, Any]) -> dict[str, str]:
    """The stages that are not trained, because their generator is in a file (``weights``): name -> file."""
    stages = [as_dict(stage) for stage in plain.get("stages") or []]
    return {str(stage.get("name")): str(stage["weights"]) for stage in stages if stage.get("weights")}


def _teachers_training(cfg: DictConfig, teacher: Mapping[str, Any], reader: Reader) -> Training | None:
    """The training of the teacher's network; None if it is not trained."""
    if not isinstance(teacher.get("net"), dict) or teacher.get("weights") not in (None, "tune"):
        return None
    with suppress(OmegaConfBaseException):  # reported elsewhere
        changes = {**cfg.teacher.fit, "student": cfg.teacher.net, "init": None, "seed": cfg.teacher.seed}
        return _training(variant(cfg, changes), "teacher.fit", reader)
    return None


def _stages(cfg: DictConfig, reader: Reader) -> Iterator[tuple[str, Training]]:
    for i, node in enumerate(cfg.get("stages") or []):
        with suppress(OmegaConfBaseException):
            if node.get("weights"):
                continue
            own = _training(_own(cfg, node), f"stages[{i}]", reader, **_taught(node.get("teacher", True)))
            yield str(node.get("name")), own


def _controls(cfg: DictConfig, reader: Reader) -> Iterator[tuple[str, Training]]:
    for name in cfg.get("controls") or {}:
        with suppress(OmegaConfBaseException):
            node, path = cfg.controls[name], f"controls.{name}"
            own = _own(cfg, node)
            stretch = _stretch(own, path, reader) if node.get("updates") == "student" else ()
            teacher = _taught(node.get("teacher", cfg.get("taught_by") or True))
            yield str(name), _training(own, path, reader, stretch=stretch, **teacher)


def _training(cfg: DictConfig, path: str, reader: Reader, **more: Any) -> Training:
    words = _words(_plain_words(cfg, OF_A_FIT, path, reader))
    return Training(**words, source_teacher=_source_teacher(cfg, f"{path}.source.teacher", reader), **more)


def _source_teacher(cfg: DictConfig, path: str, reader: Reader) -> TeacherSettings | None:
    """The source's own teacher: its node, completed by those settings of the run's teacher that fit any network."""
    with suppress(OmegaConfBaseException):
        if (named := OmegaConf.select(cfg, "source.teacher")) is None:
            return None
        own = cfg.copy()
        with open_dict(own):
            own.teacher.update({"net": None, "weights": None, "client": None, "class_order": None, "access": "white"})
            own.teacher.update({"mean": list(cfg.data.mean), "std": list(cfg.data.std)})
            own.teacher.update({"outputs": "logits", "size": None})
            own.teacher = OmegaConf.merge(own.teacher, named)
        teacher = as_dict(reader.value(own, "teacher", path))
        return _teacher(teacher, _teachers_training(own, teacher, reader))
    return None


def _own(cfg: DictConfig, node: DictConfig) -> DictConfig:
    return variant(cfg, {str(k): v for k, v in node.items() if k not in ("name", "updates", "teacher", "weights")})


def _taught(teacher: Any) -> dict[str, Any]:
    """Whether a fit has a teacher, and of which stage it is the student, by a stage's or control's ``teacher``."""
    of_stage = isinstance(teacher, str) and teacher.startswith("stage:")
    return {
        "asks": teacher not in (None, False, "none"),
        "taught_by": teacher.removeprefix("stage:") if of_stage else None,
    }


def variant(cfg: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    """A copy of ``cfg`` with some of its top-level keys replaced.

    ``trainer``, ``teacher`` and ``data`` are merged key by key, all others are replaced. ``main`` keeps the student's
    settings, resolved, so that a control can refer to ``${main.method.optimizer}``.

    Args:
        cfg: the configuration.
        changes: key -> its new node; unresolved interpolations are resolved in the new configuration.
    """
    new = cfg.copy()
    with open_dict(new):
        new.main = OmegaConf.to_container(cfg.main, resolve=True)
        for word, node in changes.items():
            new[word] = OmegaConf.merge(new[word], node) if word in MERGED and node is not None else node
    return new


def _stretch(own: DictConfig, path: str, reader: Reader) -> tuple[Keys, ...]:
    """Paths to the settings that follow a control's length, found by reading it with a length of ``PROBE``."""
    first: Keys = EPOCHS if own.source.get("rounds") is None else ROUNDS
    long = own.copy()
    OmegaConf.update(long, ".".join(map(str, first)), PROBE, force_add=True)
    before, after = (dict(_leaves(_plain_words(cfg, STRETCHED, path, reader))) for cfg in (own, long))
    follows = [keys for keys, value in after.items() if value != before.get(keys) and keys != first]
    for keys in follows:
        if after[keys] != PROBE and not str(keys[1]).startswith("scheduler"):  # schedules are stretched
            where, what = ".".join(map(str, keys)), ".".join(map(str, first))
            reader.found[
                f"{path}.{where}: follows {what} without being equal to it, so this control cannot be made as long as "
                "the student (updates: student): write a number"
            ] = None
    return (first, *(keys for keys in follows if after[keys] == PROBE))


def _leaves(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(value, (*keys, key))
    else:
        yield keys, node


def _plain_words(cfg: DictConfig, words: Iterable[str], path: str, reader: Reader) -> dict[str, Any]:
    return {word: reader.value(cfg, word, f"{path}.{word}") for word in words if word in cfg}


def _words(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a :class:`Training`."""
    data = as_dict(plain.get("data"))
    nodes = {word: cast(Node, Node.of(plain.get(word))) for word in ("source", "student", "method", "trainer")}
    source = nodes["source"]
    return {
        **nodes,
        "source": source and source.without("teacher"),  # it is obtained before, see source_teacher
        "data": _record(Data, data, load=Node.of(data.get("load"))),
        "runtime": _record(Runtime, plain),
        "seed": plain.get("seed", UNKNOWN),
        "init": plain.get("init"),
    }


def _teacher(plain: Mapping[str, Any], training: Training | None) -> TeacherSettings:
    return _record(
        TeacherSettings, plain, training=training, **{key: Node.of(plain.get(key)) for key in ("net", "client", "pace")}
    )


def _nodes(plain: Any) -> Mapping[str, Any]:
    return freeze({name: Node.of(node) for name, node in as_dict(plain).items()})


def _record(kind: type[T], plain: Mapping[str, Any], **given: Any) -> T:
    own = {each.name: freeze(plain.get(each.name, UNKNOWN)) for each in fields(cast(Any, kind))}
    return kind(**{**own, **given})
