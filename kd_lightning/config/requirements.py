"""What a method needs of its teacher and source, and what those offer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.config.derive import REPLACED
from kd_lightning.config.overrides import nearest
from kd_lightning.config.signatures import UNKNOWN, as_dict, at, located
from kd_lightning.core.tasks import Regression
from kd_lightning.distributed.device import fast_precision
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.teachers.access import LEVELS


def fits_of(plain: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whatever will be trained: the place of its method, and the composition it sees.

    Args:
        plain: the composition as nested dicts and lists.
    """
    yield "method", plain
    teacher = as_dict(plain.get("teacher"))
    untrained = isinstance(teacher.get("net"), dict) and teacher.get("weights") is None
    if untrained and isinstance(teacher.get("fit"), dict):
        yield "teacher.fit.method", {**plain, **teacher["fit"], "teacher": {**teacher, "net": None}}
    for number, stage in enumerate(plain.get("stages") or []):
        changes = {k: v for k, v in as_dict(stage).items() if k in REPLACED}
        yield f"stages[{number}].method", {**plain, **changes}
    asked = _teacher_of(plain) is not None and teacher.get("access") == "white"
    for name, node in as_dict(plain.get("controls")).items():
        changes = {k: v for k, v in as_dict(node).items() if k in REPLACED}
        if asked or as_dict(node).get("teacher") is False:  # the others are left out by the run
            yield f"controls.{name}.method", {**plain, **changes}


def needs_faults(path: str, cfg: Mapping[str, Any]) -> Iterator[str]:
    """One line for each thing that a method lacks.

    Args:
        path: where the method stands.
        cfg: the composition it sees.
    """
    method, source = _class_of(cfg.get("method")), _class_of(cfg.get("source"))
    if method is None:
        return
    if not (inspect.isclass(method) and issubclass(method, Distiller)):
        base = f"{Distiller.__module__}.{Distiller.__name__}"
        yield f"{path}._target_: {getattr(method, '__name__', method)} is not a method: expected a subclass of {base}"
        return
    needs, name = method.needs(**_settings(cfg["method"])), method.__name__
    yield from _teacher_faults(path, name, needs, cfg, method.instead_of_gradients)
    yield from _task_faults(path, name, needs, cfg)
    yield from _block_faults(path, cfg)
    if method.clips_gradients:
        yield from _clip_faults(path, cfg)
    if source is None:
        return
    beside = f"{path.removesuffix('method')}source"
    yield from _task_faults(beside, source.__name__, getattr(source, "needs", set()), cfg)
    yield from _teacher_faults(beside, source.__name__, getattr(source, "needs", set()), cfg)
    if not hasattr(source, "offers"):
        yield f"{beside}._target_: {source.__name__} is not a source: it lacks `offers`"
        return
    ways = {
        "source.free": "makes its own images: use source=free",
        "source.images": "trains on images: use source=real, few_shot, noise or queried",
        "source.vicinity": "trains on images of labels near those it wants: use source=vicinal",
        "source.counterfactuals": "trains on counterfactual images, too: use source=real_and_counterfactual",
        "source.latents": "learns what a teacher draws of latents: use source=drawn",
        "source.labels": "trains on labels: use source=real or few_shot, or set method.label=0",
        "source.answers": "trains on the teacher's answers: use source=queried or few_asked",
    }
    if "source.labels" in method.needs(**_settings(cfg["method"]) | {"label": 0}):
        ways["source.labels"] = "trains on labels: use source=real or few_shot"
    yield from _rounds_faults(f"{beside}.rounds", method, as_dict(cfg.get("source")))
    lacking = sorted(need for need in needs if need.startswith("source.") and need not in source.offers)
    if lacking:
        yield f"{path}: {name} {ways.get(lacking[0], f'needs {lacking[0]}')}"


def _rounds_faults(path: str, method: type[Distiller], source: Mapping[str, Any]) -> Iterator[str]:
    """One line where the length of an epoch is said twice, or not at all."""
    own = method.rounds_an_epoch is not Distiller.rounds_an_epoch
    rounds = source.get("rounds", UNKNOWN)
    if own and isinstance(rounds, int):
        yield (
            f"{path}={rounds}: an epoch of {method.__name__} is one round of its paper, whose length follows from "
            f"method.steps, method.kd_steps and method.per_batch: set {path}=null, and trainer.max_epochs to the "
            "number of rounds of the paper"
        )
    if rounds is None and not own:
        does_not = f"{method.__name__} does not say how many rounds an epoch has"
        yield f"{path}: required, for {does_not}; give it with {path}=..."


def _block_faults(path: str, cfg: Mapping[str, Any]) -> Iterator[str]:
    """One line for each module that a network lacks: of ``blocks``, in both, or of ``features``, in the teacher."""
    for key, nets in {"blocks": ("student", "teacher.net"), "features": ("teacher.net",)}.items():
        wanted = cfg["method"].get(key)
        if not isinstance(wanted, list):
            continue
        for net in nets:
            node = at(cfg, net)
            there = _paths(node) if isinstance(node, dict) else None
            for block in [block for block in wanted if there and block not in there]:
                of = node["_target_"].rpartition(".")[2]
                parts = [part for part in there or () if part.count(".") == 1]
                has = "".join(f"did you mean {part}? It has " for part in nearest(block, parts)) or "it has "
                none = f"; {path}.{key}=[] compares none" if key == "blocks" else ""
                yield f"{path}.{key}: {of} ({net}) has no {block}; {has}{', '.join(parts)}{none}"


def _paths(net: Mapping[str, Any]) -> list[str]:
    """Of the modules of a network, as methods name them: within what normalises its input."""
    try:
        with torch.device("meta"):
            return [f"net.{name}" for name, _ in instantiate(dict(net)).named_modules() if name]
    except Exception:
        return []  # noted elsewhere


def _clip_faults(path: str, cfg: Mapping[str, Any]) -> Iterator[str]:
    """One line for each fused optimiser of a method that clips gradients, in mixed precision."""
    precision = at(cfg, "trainer.precision")
    if precision == "auto":
        precision = fast_precision(at(cfg, "trainer.accelerator"))
    if "mixed" not in str(precision):
        return
    for key, node in cfg["method"].items():
        if str(key).startswith("optimizer") and as_dict(node).get("fused"):
            yield (
                f"{path}.{key}.fused=true: this method clips gradients, which Lightning refuses for a fused optimiser "
                f"at trainer.precision={precision}: set {path}.{key}.fused=false"
            )


def needs_of(method: Mapping[str, Any]) -> set[str]:
    """What the method of a composition needs, as it is set.

    Args:
        method: the node, as plain data.
    """
    return located(method["_target_"]).needs(**_settings(method))


def _settings(method: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in method.items() if not k.startswith("_") and v is not UNKNOWN}


def metric_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """One line for each further metric that asks for more than the teacher or the data give."""
    net, access = _teacher_of(plain), at(plain, "teacher.access")
    for name, node in as_dict(plain.get("metrics")).items():
        needs: Set[str] = getattr(_class_of(node), "needs", frozenset())
        yield from _task_faults(f"metrics.{name}", getattr(_class_of(node), "__name__", name), needs, plain)
        if "teacher.gradients" in needs and (net is None or access != "white"):
            offered = "teacher=none" if net is None else f"teacher.access={access} gives answers alone"
            yield f"metrics.{name}: follows the teacher's gradients, but {offered}: leave it out with metrics=none"


def answer_faults(plain: Mapping[str, Any]) -> Iterator[str]:
    """One line for each network that answers what the labels are not, or is to tell it as only classes can be told."""
    for path in ("student", "teacher.net"):
        net = _class_of(at(plain, path))
        yield from _task_faults(path, getattr(net, "__name__", path), getattr(net, "needs", frozenset()), plain)
    if of_numbers(plain) and (access := at(plain, "teacher.access")) in LEVELS and access not in ("white", "logits"):
        yield (
            f"teacher.access={access}: a number is told whole or not at all: choose teacher.access=white, or logits "
            "for a teacher that only answers"
        )


def of_numbers(cfg: Mapping[str, Any]) -> bool:
    """Whether the labels of a composition's data are numbers."""
    task = _class_of(at(cfg, "data.load.task"))
    return inspect.isclass(task) and issubclass(task, Regression)


def _task_faults(path: str, name: str, needs: Set[str], cfg: Mapping[str, Any]) -> Iterator[str]:
    if "task.classification" in needs and of_numbers(cfg):
        yield (
            f"{path}: {name} as it is set is made for classes, but the labels of these data are numbers: use method=kd "
            "or supervised with source=real, and controls and metrics that need no class"
        )
    if "task.regression" in needs and not of_numbers(cfg):
        yield f"{path}: {name} is made for numbers, but the labels of these data are classes"


def door_faults(teacher: Mapping[str, Any]) -> Iterator[str]:
    """One line for each thing that is wrong with how a teacher is asked."""
    if teacher.get("asker") is not None:
        if teacher.get("net") is not None:
            yield "teacher.asker: there is a network, too, in teacher.net; ~teacher.asker or teacher.net=null decides"
        if teacher.get("access") == "white":
            yield "teacher.access=white: a teacher that is not here only answers; set probs, topk or label"
    file = teacher.get("reference")
    if isinstance(file, str) and not Path(file).expanduser().exists():
        yield f"teacher.reference: there is no {file}"
    for key in ("smoothing", "min_coverage", "abstain_below"):
        value = teacher.get(key)
        if isinstance(value, int | float) and not 0 <= value <= 1:
            yield f"teacher.{key}={value}: expected a share between 0 and 1"


def _teacher_faults(
    path: str,
    name: str,
    needs: Set[str],
    cfg: Mapping[str, Any],
    instead: str = Distiller.instead_of_gradients,
) -> Iterator[str]:
    net, access = _teacher_of(cfg), at(cfg, "teacher.access")
    if any(need.startswith("teacher") for need in needs) and net is None:
        yield f"{path}: {name} needs a teacher, but teacher=none: choose one with teacher=NAME"
    if "teacher.gradients" in needs and net is not None and access != "white" and access in LEVELS:
        yield (
            f"{path}: {name} needs the teacher's gradients, but teacher.access={access} gives answers alone: {instead}"
        )
    net = at(cfg, "teacher.net")
    if "teacher.batch_norm" in needs and isinstance(net, dict) and not _has_batch_norm(net):
        by_setting = "batch_norm" in net
        how = "set teacher.net.batch_norm=true" if by_setting else "choose another teacher, such as teacher=resnet34"
        yield (
            f"{path}: {name} reads the teacher's batch-norm statistics, but {net['_target_'].rpartition('.')[2]} "
            f"as it is set has no batch norm: {how}"
        )


def _teacher_of(cfg: Mapping[str, Any]) -> Any:
    """The node of its network or, where it has none here, of who asks it; None without a teacher."""
    net = at(cfg, "teacher.net")
    return as_dict(cfg.get("teacher")).get("asker") if net is None else net


def _class_of(node: Any) -> Any:
    try:
        return located(node["_target_"])
    except (ImportError, KeyError, TypeError):
        return None  # noted elsewhere


def _has_batch_norm(net: Mapping[str, Any]) -> bool:
    with torch.device("meta"):
        return any(isinstance(m, _BatchNorm) for m in instantiate(dict(net)).modules())
