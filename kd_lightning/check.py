"""Every fault of a composition in one error, before data, weights or a GPU are touched."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.errors import ConfigError, UserError
from kd_lightning.teacher.access import LEVELS
from kd_lightning.variant import variant

GIVEN = {"student", "teacher", "task", "store", "save_dir", "params", "optimizer"}
"""Arguments that the run supplies."""

FORBIDDEN_TRAINER = {
    "max_steps": "it counts every optimiser's steps together; set trainer.max_epochs and source.rounds",
    "gradient_clip_val": "methods optimise by hand and clip, where their paper does, by a setting of their own",
    "accumulate_grad_batches": "methods optimise by hand; raise the batch size instead",
}


def check(cfg: DictConfig) -> None:
    """Find everything that is wrong with a composition.

    Raises:
        ConfigError: lists every fault, each with what was expected.
    """
    problems = faults(cfg)
    if problems:
        raise ConfigError("this composition cannot run:\n  " + "\n  ".join(problems))


def faults(cfg: DictConfig) -> list[str]:
    """The faults of a composition, one line each; none if it can run."""
    if missing := [f"{key}: required, give it with {key}=..." for key in sorted(OmegaConf.missing_keys(cfg))]:
        return missing
    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, UserError) as error:
        return [str(error).replace("\n", " ").strip()]
    problems = [problem for path, node in _targets(plain) for problem in _signature_faults(path, node)]
    problems += _trainer_faults(plain["trainer"])
    problems += _shape_faults(plain)
    problems += _file_faults(plain)
    if problems:
        return problems
    problems = _needs_faults("method", plain)
    for name, node in cfg.controls.items():
        changes = {k: v for k, v in node.items() if k not in ("updates", "teacher")}
        own: Any = OmegaConf.to_container(variant(cfg, changes), resolve=True)
        problems += _needs_faults(f"controls.{name}.method", own)
    return problems


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            if (path, key) != ("", "main"):  # repeats what stands elsewhere
                yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{path}[{i}]")


def _signature_faults(path: str, node: Mapping[str, Any]) -> list[str]:
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        return [f"{path}._target_: cannot import {node['_target_']} ({reason})"]
    try:
        parameters, hints, open_ended = _parameters(target)
    except (ValueError, TypeError):
        return []  # a builtin without a signature
    settings = {k: v for k, v in node.items() if not k.startswith("_")}
    problems = []
    for key, value in settings.items():
        if key not in parameters:
            if not open_ended:
                problems.append(f"{path}.{key}: {_name(target)} has no such setting{nearest(key, parameters)}")
        elif not _fits(value, hints.get(key, Any)):
            problems.append(f"{path}.{key}: {value!r} is {_type_name(value)}, expected {_hint_name(hints[key])}")
    if not node.get("_partial_"):
        problems += [
            f"{path}.{key}: required by {_name(target)}, give it with {path}.{key}=..."
            for key, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty
            and key not in settings
            and key not in GIVEN
            and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            and "_args_" not in node
        ]
    return problems


def _parameters(target: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any], bool]:
    """Parameters and type hints by name; ``**kwargs`` of a class is followed to its base classes."""
    layers = [c.__init__ for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    parameters: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for layer in layers:
        signature = inspect.signature(layer)
        own = {k: p for k, p in signature.parameters.items() if k != "self"}
        parameters = {**{k: p for k, p in own.items() if p.kind is not p.VAR_KEYWORD}, **parameters}
        try:
            hints = {**typing.get_type_hints(layer), **hints}
        except Exception:
            hints = {**getattr(layer, "__annotations__", {}), **hints}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            return parameters, hints, False
    return parameters, hints, True


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any or isinstance(hint, (str, typing.TypeVar)):
        return True
    if hint is None or hint is type(None):
        return value is None
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(value, dict) and "_target_" in value:
        return hint not in (int, float, str, bool)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if value is None or isinstance(value, (bool, int, float)):
        return not (origin or hint in (list, tuple, dict)) and not inspect.isclass(hint)
    return True


def _trainer_faults(trainer: Mapping[str, Any]) -> list[str]:
    return [
        f"trainer.{key}={trainer[key]}: {why}"
        for key, why in FORBIDDEN_TRAINER.items()
        if trainer.get(key) not in (None, -1, 1 if key == "accumulate_grad_batches" else None)
    ]


def _shape_faults(cfg: Mapping[str, Any]) -> list[str]:
    data, teacher = cfg["data"], cfg["teacher"]
    problems = [
        f"data.{key}: {len(data[key])} values for {data['channels']} channel(s)"
        for key in ("mean", "std")
        if len(data[key]) != data["channels"]
    ]
    for path, net in {"student": cfg["student"], "teacher.net": teacher["net"]}.items():
        for key, wanted in {"num_classes": data["num_classes"], "in_channels": data["channels"]}.items():
            if net and key in net and net[key] != wanted and not (path == "teacher.net" and teacher["class_order"]):
                problems.append(f"{path}.{key}={net[key]}, but the data has {wanted}")
    if teacher["access"] not in LEVELS:
        problems.append(f"teacher.access={teacher['access']}: expected one of {', '.join(LEVELS)}")
    return problems


def _file_faults(cfg: Mapping[str, Any]) -> list[str]:
    files = {"teacher.weights": cfg["teacher"]["weights"], "init": cfg["init"]}
    return [f"{key}: there is no file {f}" for key, f in files.items() if f and not Path(f).expanduser().is_file()]


def _needs_faults(path: str, cfg: Mapping[str, Any]) -> list[str]:
    settings = {k: v for k, v in cfg["method"].items() if not k.startswith("_")}
    method = get_object(cfg["method"]["_target_"])
    needs = method.needs(**settings)
    offers = get_object(cfg["source"]["_target_"]).offers
    teacher = cfg["teacher"]
    name = method.__name__
    problems = []
    if any(need.startswith("teacher") for need in needs) and teacher["net"] is None:
        problems.append(f"{path}: {name} needs a teacher, but teacher=none: choose one with teacher=NAME")
    elif "teacher.gradients" in needs and teacher["access"] != "white":
        problems.append(
            f"{path}: {name} needs the teacher's gradients, but teacher.access={teacher['access']} gives answers "
            "alone: set teacher.access=white, or ask with method=kd source=queried"
        )
    elif "teacher.batch_norm" in needs and not _has_batch_norm(teacher["net"]):
        problems.append(
            f"{path}: {name} reads the teacher's batch-norm statistics, but {teacher['net']['_target_']} has no "
            "batch norm as it is set: choose a teacher with batch norm"
        )
    wanted = {need for need in needs if need.startswith("source.")} - offers
    if wanted:
        ways = {
            "source.free": "makes its own images: use source=free",
            "source.images": "trains on images: use source=real, few_shot, noise or queried",
            "source.labels": "trains on labels: use source=real or few_shot, or set method.label=0",
        }
        problems += [f"{path}: {name} {ways[need]}" for need in sorted(wanted)[:1]]
    return problems


def _has_batch_norm(net: Mapping[str, Any]) -> bool:
    with torch.device("meta"):
        return any(isinstance(m, _BatchNorm) for m in instantiate(dict(net)).modules())


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """A hint at the right spelling, such as ``; did you mean latent?``, or which there are."""
    names = sorted(set(known) - GIVEN)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(names)}"


def _name(target: Any) -> str:
    return getattr(target, "__qualname__", str(target))


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _hint_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_hint_name(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "null"
    return getattr(hint, "__name__", str(hint))
