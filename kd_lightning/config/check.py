"""Every fault of a composition in one error, before data, weights or a GPU are touched."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from kd_lightning.config.derive import MERGED, REPLACED
from kd_lightning.config.overrides import dotted, refusal, suggest
from kd_lightning.config.ranks import rank_faults
from kd_lightning.config.requirements import (
    answer_faults,
    door_faults,
    fits_of,
    metric_faults,
    needs_faults,
    of_numbers,
)
from kd_lightning.config.schema import KEYS
from kd_lightning.config.signatures import UNKNOWN, as_dict, at, fits, signature_faults, wrong
from kd_lightning.core.time_limit import duration
from kd_lightning.errors import ConfigError

FORBIDDEN_TRAINER = {
    "max_steps": "it counts every optimiser's steps together; set trainer.max_epochs and source.rounds",
    "gradient_clip_val": "methods optimise by hand and clip, where their paper does, by a setting of their own",
    "accumulate_grad_batches": "methods optimise by hand; raise the batch size instead",
}

PER_CONTROL = {*REPLACED, *MERGED, "updates"}

Faults = dict[str, None]
"""An ordered set of lines."""


def check(cfg: DictConfig) -> None:
    """Find everything that is wrong with a composition.

    Raises:
        ConfigError: lists every fault, each with what was expected.
    """
    if found := faults(cfg):
        raise refusal(found)


def faults(cfg: DictConfig) -> list[str]:
    """The faults of a composition, one line each; none if it can run."""
    found: Faults = {}
    everywhere = list(dotted(cfg))
    echoes: dict[str, str] = {}
    plain = _plain(cfg, "", found, everywhere, echoes)
    found |= dict.fromkeys(_key_faults(cfg, plain, everywhere))
    for path, node in [*_targets(plain), *_partial_trainers(plain)]:
        found |= dict.fromkeys(signature_faults(path, node, everywhere))
    found |= dict.fromkeys([*_trainer_faults(plain), *_shape_faults(plain), *_file_faults(plain)])
    found |= dict.fromkeys(_compiler_faults(plain))
    found |= dict.fromkeys([*metric_faults(plain), *answer_faults(plain), *door_faults(as_dict(plain.get("teacher")))])
    for path, own in fits_of(plain):
        try:
            found |= dict.fromkeys(needs_faults(path, own))
        except Exception:
            if not found:  # a fault of the settings is the likelier cause
                raise
    said = {key_of(line) for line in found}
    return [line for line in found if not said & set(_origins(key_of(line), echoes))]


def key_of(fault: str) -> str:
    """The key that a fault begins with."""
    return re.split("[:=]", fault, maxsplit=1)[0]


def _origins(key: str, echoes: Mapping[str, str]) -> Iterator[str]:
    """Where the value at ``key`` comes from, step by step: ``${...}`` may stand at it or above it."""
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


def _plain(node: Any, path: str, found: Faults, everywhere: list[str], echoes: dict[str, str]) -> Any:
    """Nested dicts and lists with every ``${...}`` resolved; UNKNOWN and a fault where that fails."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return node
    is_list = isinstance(node, ListConfig)
    keys: Any = range(len(node)) if is_list else node
    values: dict[Any, Any] = {}
    for key in keys:
        full = f"{path}[{key}]" if is_list else f"{path}.{key}" if path else str(key)
        values[key] = UNKNOWN
        raw: Any = node._get_node(key)
        if reference := re.fullmatch(r"\$\{(?:oc\.select:)?([\w.]+)(?:,.*)?\}", str(raw._value())):
            echoes[full] = reference[1]
        try:
            if full != "main":  # repeats what stands elsewhere
                values[key] = _plain(node[key], full, found, everywhere, echoes)
        except MissingMandatoryValue:
            found[f"{full}: required, give it with {full}=..."] = None
        except InterpolationToMissingValueError:
            continue  # said where it is missing
        except OmegaConfBaseException as error:
            problem = _reason(error, everywhere)
            if not any(line.endswith(problem) for line in found):  # others may refer to the same
                found[f"{full}: {problem}"] = None
    return list(values.values()) if is_list else values


def _reason(error: OmegaConfBaseException, everywhere: list[str]) -> str:
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
    if isinstance(error, InterpolationKeyError) and (key := re.search("'(.*)'", text)):
        return f"${{{key[1]}}} refers to nothing{suggest(key[1], [], everywhere)}"
    return text


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


def _partial_trainers(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the teacher's fit and the controls change in the trainer."""
    places = {"teacher.fit": at(plain, "teacher.fit")}
    places |= {f"controls.{name}": node for name, node in as_dict(plain.get("controls")).items()}
    places |= {f"stages[{i}]": stage for i, stage in enumerate(plain.get("stages") or [])}
    for path, node in places.items():
        if isinstance(own := as_dict(node).get("trainer"), dict) and "_target_" not in own:
            yield f"{path}.trainer", {**own, "_target_": "lightning.Trainer", "_partial_": True}


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{path}[{i}]")


def _trainer_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    for path, trainer in [("trainer", as_dict(plain.get("trainer"))), *_partial_trainers(plain)]:
        for key, why in FORBIDDEN_TRAINER.items():
            value = trainer.get(key)
            if value not in (None, -1, UNKNOWN) and not (key == "accumulate_grad_batches" and value == 1):
                yield f"{path}.{key}={value}: {why}"
        yield from rank_faults(path, trainer)
        if (allowed := trainer.get("max_time")) is not UNKNOWN:
            try:
                duration(allowed)
            except ConfigError as error:
                yield str(error).replace("trainer", path, 1)


def _shape_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    classes, channels = at(cfg, "data.num_classes"), at(cfg, "data.channels")
    for key in ("data.mean", "data.std", "teacher.mean", "teacher.std"):
        values = at(cfg, key)
        if isinstance(values, list) and isinstance(channels, int) and len(values) != channels:
            yield f"{key}: {len(values)} values for {channels} channel{'s' if channels > 1 else ''}"
    order = at(cfg, "teacher.class_order")
    if isinstance(order, list) and isinstance(classes, int) and len(order) != classes:
        yield f"teacher.class_order: {len(order)} values for {classes} classes"
    nets = {"student": False, "teacher.net": isinstance(order, list), "source.teacher.net": False}
    for path, more_outputs in nets.items():
        net = as_dict(at(cfg, path))
        for key, wanted in {"num_classes": classes, "in_channels": channels}.items():
            value = net.get(key)
            if isinstance(value, int) and isinstance(wanted, int) and value != wanted:
                if key == "num_classes" and more_outputs and value > wanted:
                    continue
                what = "classes" if key == "num_classes" else "channels"
                numbers = key == "num_classes" and of_numbers(cfg)
                has = "the labels are numbers, for which a network has one output" if numbers else ""
                yield f"{path}.{key}={value}: {has or f'the data has {wanted} {what}'}"


def _compiler_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    on_cpu = at(cfg, "trainer.accelerator") == "cpu" or not torch.cuda.is_available()
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if cfg.get("compile") == "inductor" and on_cpu and not any(map(shutil.which, compilers)):
        none = " or ".join(compilers)
        yield f"compile=inductor: takes a C++ compiler on a CPU, and there is no {none}; install one, or compile=null"


def _file_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    stages = [as_dict(stage).get("name") for stage in cfg.get("stages") or []]
    for key, file in {"init": at(cfg, "init"), **dict(_weights(cfg))}.items():
        if not isinstance(file, str) or not file:
            continue
        if file.startswith("stage:"):
            name = file.removeprefix("stage:").partition("/")[0]
            if name not in stages:
                yield f"{key}={file}: there is no stage {name}{suggest(name, filter(None, stages))}"
        elif not Path(file).expanduser().is_file():
            yield f"{key}: there is no file {file}"


def _weights(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Wherever a file of weights, or one that a stage leaves, is named."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    for key, value in as_dict(node).items():
        full = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else str(key)
        # torchvision's networks have a word of that name
        named = full.endswith(("teacher.weights", "source.weights", "expand.weights"))
        if named or str(value).startswith("stage:"):
            yield full, value
        else:
            yield from _weights(value, full)
