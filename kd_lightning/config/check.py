"""Every fault of a composition in one error, before data, weights or a GPU are touched."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from kd_lightning.config.composition import OWN, TUNE, Composition
from kd_lightning.config.derive import GENERATOR, MERGED, REPLACED, draft, files_of_stages
from kd_lightning.config.node import UNKNOWN, Node
from kd_lightning.config.overrides import refusal
from kd_lightning.config.reader import Reader
from kd_lightning.config.requirements import answer_faults, fit_faults, metric_faults, pool_faults
from kd_lightning.config.schedules import schedule_faults
from kd_lightning.config.schema import KEYS
from kd_lightning.config.signatures import as_dict, at, fits, signature_faults, wrong
from kd_lightning.config.spelling import dotted, suggest
from kd_lightning.config.task_kinds import of_numbers
from kd_lightning.config.teacher_faults import door_faults
from kd_lightning.config.trainer_faults import partial_trainers, trainer_faults

PER_CONTROL = {*REPLACED, *MERGED, "updates"}


def check(cfg: DictConfig, names: Mapping[str, str | None] | None = None) -> Composition:
    """Check a configuration and return its composition.

    Args:
        cfg: the configuration.
        names: the chosen members of the groups.

    Raises:
        ConfigError: lists every fault, each with what was expected.
    """
    found, composition = examined(cfg, names)
    if found or composition is None:
        raise refusal(found)
    return composition


def faults(cfg: DictConfig) -> list[str]:
    """The faults of a configuration, one line each; none if it can run."""
    return examined(cfg)[0]


def examined(cfg: DictConfig, names: Mapping[str, str | None] | None = None) -> tuple[list[str], Composition | None]:
    """The faults of a configuration, and its composition as far as it can be read, else None.

    Args:
        cfg: the configuration.
        names: the chosen members of the groups.
    """
    if names:
        cfg = cfg.copy()
        with open_dict(cfg):
            cfg.names = {**cfg.names, **names}
    everywhere = list(dotted(cfg))
    reader, beside = Reader(everywhere), Reader(everywhere)
    plain, found = reader.read(cfg), reader.found
    found |= dict.fromkeys(_key_faults(cfg, plain, everywhere))
    for path, node in [*_targets(plain), *partial_trainers(plain)]:
        found |= dict.fromkeys(signature_faults(path, node, everywhere))
    found |= dict.fromkeys([*_seed_faults(plain), *trainer_faults(plain), *_shape_faults(plain), *_file_faults(plain)])
    found |= dict.fromkeys([*_stage_faults(plain), *schedule_faults(plain)])
    found |= dict.fromkeys([*_compiler_faults(plain), *door_faults(as_dict(plain.get("teacher")))])
    composition: Composition | None = None
    try:
        composition = draft(cfg, plain, beside)
        for each in (metric_faults, answer_faults, fit_faults):
            found |= dict.fromkeys(each(composition))
        if not found:  # another stage may be what is wrong
            found |= dict.fromkeys(pool_faults(composition))
    except Exception:
        if not found:  # else the faults found are the likely cause
            raise
    found = found or beside.found
    said = {key_of(line) for line in found}
    lines = [line for line in found if not said & set(_origins(key_of(line), reader.echoes))]
    return lines, composition


def key_of(fault: str) -> str:
    """The key that a fault begins with."""
    return re.split("[:=]", fault, maxsplit=1)[0]


def _origins(key: str, echoes: Mapping[str, str]) -> Iterator[str]:
    """Yield the keys that the value at ``key`` refers to, one after the other; ``${...}`` may be at it or above it."""
    seen = {key}
    above = key
    while above:
        if above in echoes:
            key = above = echoes[above].removeprefix("main.") + key.removeprefix(above)
            if key in seen:
                return
            seen.add(key)
            yield key
        else:
            above = above.rpartition(".")[0]


def _key_faults(cfg: DictConfig, plain: Mapping[str, Any], everywhere: list[str]) -> Iterator[str]:
    referred = None
    for key in {k.partition(".")[0]: None for k in KEYS} | dict.fromkeys(plain):
        yield from _typed(key, plain)
    for path in _strays(plain):
        if referred is None:
            referred = _referred(cfg)
        if not any(key == path or key.startswith(f"{path}.") for key in referred):
            parent = path.rpartition(".")[0]
            beside = [k.rpartition(".")[2] for k in KEYS if k.rpartition(".")[0] == parent]
            beside += [k for k in at(plain, parent) if f"{parent}.{k}" in referred]
            if not parent:
                beside += ["problem", "experiment", "debug", "scale"]
            yield f"{path}: nothing reads this setting{suggest(path, beside, everywhere)}"
    for name, node in as_dict(plain.get("controls")).items():
        for key in as_dict(node):
            if key not in PER_CONTROL:
                path = f"controls.{name}.{key}"
                yield f"{path}: a control has no such setting{suggest(path, PER_CONTROL)}"
    for word in ("source", "student", "method", "trainer"):
        if isinstance(plain.get(word), dict) and "_target_" not in plain[word]:
            yield f"{word}: required, name its class with {word}._target_=package.module.Class"


def _typed(top: str, plain: Mapping[str, Any]) -> Iterator[str]:
    for path, hint in KEYS.items():
        if path.partition(".")[0] == top:
            parent, _, leaf = path.rpartition(".")
            node = at(plain, parent)
            if isinstance(node, dict):
                if leaf not in node:
                    yield f"{path}: required, give it with +{path}=..."
                elif not fits(node[leaf], hint):
                    yield wrong(path, node[leaf], hint)


def _strays(node: Any, path: str = "") -> Iterator[str]:
    for key, value in as_dict(node).items():
        full = f"{path}.{key}" if path else str(key)
        if full not in KEYS:
            if value != {}:  # such as a scale that changes nothing
                yield full
        elif any(k.startswith(f"{full}.") for k in KEYS) and full != "teacher.fit":
            yield from _strays(value, full)


def _referred(cfg: DictConfig) -> set[str]:
    text = OmegaConf.to_yaml(cfg)
    return {key for inside in re.findall(r"\$\{([^}]*)", text) for key in re.findall(r"\w[\w.]*", inside)}


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{path}[{i}]")


def _seed_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    for key in ("seed", "teacher.seed", "source.seed", "source.teacher.seed"):
        seed = at(plain, key)
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            yield f"{key}={seed}: expected a number from 0 to {2**32 - 1}"


def _shape_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    classes, channels = at(cfg, "data.num_classes"), at(cfg, "data.channels")
    for key in ("data.mean", "data.std", "teacher.mean", "teacher.std"):
        values = at(cfg, key)
        if isinstance(values, list) and isinstance(channels, int) and len(values) != channels:
            yield f"{key}: {len(values)} values for {channels} channel{'s' if channels > 1 else ''}"
    order = at(cfg, "teacher.class_order")
    if isinstance(order, list) and isinstance(classes, int) and len(order) != classes:
        yield f"teacher.class_order: {len(order)} values for {classes} classes"
    if isinstance(order, list) and at(cfg, "teacher.net") and at(cfg, "teacher.weights") in (None, "tune"):
        yield (
            "teacher.class_order: this teacher is trained here, and learns the data's own order; it is for "
            "weights that are there: add teacher.weights=FILE, or leave it out"
        )
    if classes == 1 and not of_numbers(Node.of(at(cfg, "data.load"))):
        yield "data.num_classes=1: with one class there is nothing to tell apart; give two or more"
    nets = {"student": False, "teacher.net": isinstance(order, list), "source.teacher.net": False}
    for path, more_outputs in nets.items():
        net = as_dict(at(cfg, path))
        for key, wanted in {"num_classes": classes, "in_channels": channels}.items():
            value = net.get(key)
            if isinstance(value, int) and isinstance(wanted, int) and value != wanted:
                if key == "num_classes" and more_outputs and value > wanted:
                    continue
                if path == "teacher.net" and value == 1 and at(cfg, "teacher.outputs") != "logits":
                    continue
                what = "classes" if key == "num_classes" else "channels"
                numbers = key == "num_classes" and of_numbers(Node.of(at(cfg, "data.load")))
                has = "the labels are numbers, for which a network has one output" if numbers else ""
                yield f"{path}.{key}={value}: {has or f'the data has {wanted} {what}'}"


def _compiler_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    on_cpu = at(cfg, "trainer.accelerator") == "cpu" or not torch.cuda.is_available()
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if cfg.get("compile") == "inductor" and on_cpu and not any(map(shutil.which, compilers)):
        none = " or ".join(compilers)
        yield f"compile=inductor: takes a C++ compiler on a CPU, and there is no {none}; install one, or compile=null"


def _stage_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    names: list[Any] = []
    for number, stage in enumerate(cfg.get("stages") or []):
        if (name := as_dict(stage).get("name")) is None:
            yield f"stages[{number}].name: required, later words refer to its files by it"
        elif name in names:
            yield f"stages[{number}].name: there is another stage called {name}; give it a name of its own"
        yield from _teacher_faults(f"stages[{number}].teacher", as_dict(stage).get("teacher", True), names)
        names.append(name)
    for name, control in as_dict(cfg.get("controls")).items():
        yield from _teacher_faults(f"controls.{name}.teacher", as_dict(control).get("teacher", True), names)
    if isinstance(teacher := cfg.get("taught_by"), str) and not teacher.startswith("stage:"):
        yield f"taught_by={teacher}: expected stage:NAME, the stage whose student teaches; or choose teacher=NAME"


def _teacher_faults(path: str, teacher: Any, before: list[Any]) -> Iterator[str]:
    """One line where a stage's or control's teacher is neither the run's, nor none, nor that of a stage before."""
    if isinstance(teacher, bool) or teacher in (None, "none", UNKNOWN):
        return
    if not (isinstance(teacher, str) and teacher.startswith("stage:")):
        shown = "a mapping" if isinstance(teacher, dict) else teacher
        yield f"{path}: expected stage:NAME, none, or true for the run's teacher, got {shown}"
    elif (name := teacher.removeprefix("stage:")) not in before:
        there = ", ".join(map(str, before)) or "there is none"
        yield f"{path}={teacher}: there is no stage {name} before it; those before: {there}"


def _file_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    stages = [as_dict(stage).get("name") for stage in cfg.get("stages") or []]
    taken = files_of_stages(cfg)
    for name, file in taken.items():
        if not Path(file).expanduser().is_file():
            yield f"{name}.weights: there is no file {file}; give that of the stage's generator, or null to train it"
    for key, file in {"init": at(cfg, "init"), **dict(_weights(cfg))}.items():
        if not isinstance(file, str) or not file:
            continue
        if file.startswith("stage:"):
            name = file.removeprefix("stage:").partition("/")[0]
            if name in taken and file != f"stage:{name}/{GENERATOR}":
                yield f"{key}={file}: the stage {name}, of {name}.weights, has only {GENERATOR}; expected that one"
            if name not in stages:
                yield f"{key}={file}: there is no stage {name}{suggest(name, filter(None, stages))}"
        elif not (key == "teacher.weights" and file in (OWN, TUNE)) and not Path(file).expanduser().is_file():
            yield f"{key}: there is no file {file}"


def _weights(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting that names a file of weights or a file of a stage."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    for key, value in as_dict(node).items():
        full = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else str(key)
        # torchvision's networks have a setting of that name
        named = full.endswith(("teacher.weights", "source.weights", "expand.weights"))
        if named or str(value).startswith("stage:"):
            yield full, value
        else:
            yield from _weights(value, full)
