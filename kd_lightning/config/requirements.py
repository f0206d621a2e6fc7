"""Checks the requirements of methods, sources, networks and metrics against the teacher and the data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch

from kd_lightning.config.composition import Composition, Training
from kd_lightning.config.node import UNKNOWN, Node, thaw
from kd_lightning.config.several_labels import SEVERAL, several_teacher_faults
from kd_lightning.config.signatures import as_dict
from kd_lightning.config.spelling import nearest
from kd_lightning.config.task_kinds import KINDS, class_of, kind_of, task_faults
from kd_lightning.config.teacher_faults import Answering, StageTeacher, has_batch_norm, teacher_needs_faults
from kd_lightning.config.term_faults import given_faults, module_faults, term_faults
from kd_lightning.distributed.device import fast_precision
from kd_lightning.errors import ConfigError
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.networks import classifiers
from kd_lightning.sources.frozen_generator import Generated
from kd_lightning.sources.pool_choice import most_below
from kd_lightning.sources.synthetic import Synthetic
from kd_lightning.teachers.access import LEVELS

CLASSIFIERS = f"{classifiers.__name__}."
"""Networks that answer one vector for an image."""


def fit_faults(composition: Composition) -> Iterator[str]:
    """One line for each unmet requirement of the method of any fit."""
    teacher, kind = composition.teacher, kind_of(composition.data.load)
    yield from needs_faults("method", composition, _teacher_of(composition, composition), kind=kind)
    yield from given_faults("method", composition, composition.stages)
    weights = str(composition.source.get("weights"))
    unused = "generator" in composition.stages and not weights.startswith("stage:")
    if unused and class_of(composition.source) is Generated:
        yield f"source.weights={weights}: the stage generator would be trained for nothing: add stages=none"
    if teacher is not None and teacher.training is not None:
        yield from needs_faults("teacher.fit.method", teacher.training, None, kind=kind)
    for number, stage in enumerate(composition.stages.values()):
        yield from needs_faults(f"stages[{number}].method", stage, _teacher_of(stage, composition), kind=kind)
        yield from given_faults(f"stages[{number}].method", stage, composition.stages)
    asked = teacher is not None and teacher.access == "white"
    for name, control in composition.controls.items():
        if asked or not control.asks or control.taught_by:  # the run leaves out the others
            own = _teacher_of(control, composition)
            yield from needs_faults(f"controls.{name}.method", control, own, kind=kind)


def _teacher_of(fit: Training, composition: Composition) -> Answering | None:
    """The teacher that a fit of a run gets."""
    if (stage := composition.stages.get(fit.taught_by or "")) is not None:
        return StageTeacher(stage.student)
    return composition.teacher


def needs_faults(path: str, fit: Training, teacher: Answering | None, *, kind: str) -> Iterator[str]:
    """One line for each unmet requirement of a method.

    Args:
        path: key of the method.
        fit: the training that the method belongs to.
        teacher: the teacher that it may get.
        kind: of the task, see :func:`kind_of`.
    """
    method, source = class_of(fit.method), class_of(fit.source)
    if method is None:
        return
    if not (inspect.isclass(method) and issubclass(method, Distiller)):
        base = f"{Distiller.__module__}.{Distiller.__name__}"
        yield f"{path}._target_: {getattr(method, '__name__', method)} is not a method: expected a subclass of {base}"
        return
    try:
        needs, name = fit.method.requirements(), method.__name__
    except ConfigError as fault:
        yield str(fault).replace("method.", f"{path}.")
        return
    yield from teacher_needs_faults(path, name, needs, teacher, method.instead_of_gradients)
    yield from task_faults(path, method, needs, kind)
    if "student.no_batch_norm" in needs and has_batch_norm(fit.student):
        yield (
            f"{path.removesuffix('method')}student: {name} tells real images from generated ones by what its student "
            f"makes of them, which batch norm hides, and {fit.student.target.rpartition('.')[2]} as it is set has one: "
            "choose student=noisy_mlp or noisy_conv, or a network without"
        )
    yield from _block_faults(path, fit, teacher)
    yield from term_faults(path, fit, teacher.net if teacher else None)
    yield from module_faults(path, fit)
    if method.clips_gradients or fit.method.get("clip") is not None:
        yield from _clip_faults(path, fit)
    if method.idle_epochs:
        yield from _idle_faults(path, fit, method.idle_epochs)
    if source is None:
        return
    beside = f"{path.removesuffix('method')}source"
    yield from task_faults(beside, source, fit.source.requirements(), kind)
    yield from teacher_needs_faults(beside, source.__name__, fit.source.requirements(), teacher)
    if not hasattr(source, "offers"):
        yield f"{beside}._target_: {source.__name__} is not a source: it lacks `offers`"
        return
    ways = {
        "source.free": "makes its own images: use source=free",
        "source.images": "trains on images: use source=real, few_shot, noise or queried",
        "source.vicinity": "trains on images of labels near those it wants: use source=vicinal",
        "source.counterfactuals": "trains on counterfactual images, too: use source=real_and_counterfactual",
        "source.two_streams": (
            "trains on labelled images beside images without labels: use source=labelled_and_unlabelled, or two_domains"
        ),
        "source.latents": "learns what a teacher draws of latents: use source=drawn",
        "source.labels": "trains on labels: use source=real or few_shot, or set method.label=0",
        "source.index": "keeps something for every image, and this source makes them anew: use source=real or queried",
        "source.answers": "trains on the teacher's answers: use source=queried or few_asked",
    }
    if "source.labels" in fit.method.replace(label=0).requirements():
        ways["source.labels"] = "trains on labels: use source=real or few_shot"
    yield from _rounds_faults(f"{beside}.rounds", method, fit.source)
    lacking = sorted(need for need in needs if need.startswith("source.") and need not in source.offers)
    if lacking:
        yield f"{path}: {name} {ways.get(lacking[0], f'needs {lacking[0]}')}"


def pool_faults(composition: Composition) -> Iterator[str]:
    """One line where more images of a class are wanted than a filter leaves of those that are made."""
    source = composition.source
    if kind_of(composition.data.load) != "classification" or not (
        inspect.isclass(kind := class_of(source)) and issubclass(kind, Synthetic)
    ):
        return
    images, made, keep = (source.get(key) for key in ("images", "per_label", "keep"))
    keep = None if source.get("processing") in ("unprocessed", "subsampled") else keep
    if not isinstance(images, int) or not isinstance(made, int) or not isinstance(keep, int | float | None):
        return
    wanted, left = images // composition.data.num_classes, made if keep is None else most_below(made, keep)
    if wanted > left:
        part = "" if keep is None else f" of source.per_label={made} by source.keep={keep}"
        yield (
            f"source.images={images}: takes {wanted} of each class, and at most {left} are left{part}: "
            "raise source.per_label, or ask for fewer"
        )


def _rounds_faults(path: str, method: type[Distiller], source: Node) -> Iterator[str]:
    """One line if the length of an epoch is set twice, or not at all."""
    own = method.rounds_an_epoch is not Distiller.rounds_an_epoch
    rounds = source.get("rounds", UNKNOWN)
    if own and isinstance(rounds, int):
        yield (
            f"{path}={rounds}: an epoch of {method.__name__} is as long as its own settings say: set {path}=null, "
            "and trainer.max_epochs to the number of epochs"
        )
    if rounds is None and not own:
        yield f"{path}: required, for {method.__name__} does not say how many rounds an epoch has: give {path}=..."


def _block_faults(path: str, fit: Training, teacher: Answering | None) -> Iterator[str]:
    """One line for each missing module: of ``blocks`` in both networks, of ``features`` in the teacher."""
    for key, nets in {"blocks": ("student", "teacher.net"), "features": ("teacher.net",)}.items():
        wanted = fit.method.get(key)
        if not isinstance(wanted, tuple):
            continue
        for net in nets:
            node = fit.student if net == "student" else teacher.net if teacher else None
            if node is None:
                continue
            there = _paths(node)
            for block in [block for block in wanted if there and block not in there]:
                of = node.target.rpartition(".")[2]
                parts = [part for part in there or () if part.count(".") == 1]
                has = "".join(f"did you mean {part}? It has " for part in nearest(block, parts)) or "it has "
                none = f"; {path}.{key}=[] compares none" if key == "blocks" else ""
                yield f"{path}.{key}: {of} ({net}) has no {block}; {has}{', '.join(parts)}{none}"


def _paths(net: Node) -> list[str]:
    """Paths of a network's modules as methods name them, inside the wrapper that normalises its input."""
    try:
        with torch.device("meta"):
            return [f"net.{name}" for name, _ in net.build().named_modules() if name]
    except Exception:
        return []  # reported elsewhere


def _clip_faults(path: str, fit: Training) -> Iterator[str]:
    """One line for each fused optimiser of a method that clips gradients, in mixed precision."""
    precision = fit.trainer.get("precision")
    if precision == "auto":
        precision = fast_precision(fit.trainer.get("accelerator", "auto"))
    if "mixed" not in str(precision):
        return
    for key, node in fit.method.settings.items():
        if str(key).startswith("optimizer") and as_dict(thaw(node)).get("fused"):
            yield (
                f"{path}.{key}.fused=true: this method clips gradients, which Lightning refuses for a fused optimiser "
                f"at trainer.precision={precision}: set {path}.{key}.fused=false"
            )


def _idle_faults(path: str, fit: Training, setting: str) -> Iterator[str]:
    """One line where a fit ends before its student begins to learn."""
    idle, epochs = fit.method.get(setting), fit.trainer.get("max_epochs")
    if isinstance(idle, int) and isinstance(epochs, int) and 1 <= epochs <= idle:
        trainer = f"{path.removesuffix('method')}trainer"
        yield (
            f"{trainer}.max_epochs={epochs}: the student learns nothing in the first {idle} epochs "
            f"({path}.{setting}): set {trainer}.max_epochs={idle + 1} or more, or {path}.{setting}={epochs - 1} or less"
        )


def metric_faults(composition: Composition) -> Iterator[str]:
    """One line for each unmet requirement of a further metric."""
    teacher, kind = composition.teacher, kind_of(composition.data.load)
    for name, node in composition.metrics.items():
        if (metric := class_of(node)) is None:
            continue
        needs = node.requirements()
        yield from task_faults(f"metrics.{name}", metric, needs, kind)
        if "teacher.gradients" in needs and (teacher is None or teacher.access != "white"):
            offered = "teacher=none" if teacher is None else f"teacher.access={teacher.access} gives answers alone"
            yield f"metrics.{name}: follows the teacher's gradients, but {offered}: leave it out with metrics=none"


def answer_faults(composition: Composition) -> Iterator[str]:
    """One line for each network, and for a teacher's access level, that does not suit the task."""
    teacher, kind = composition.teacher, kind_of(composition.data.load)
    for path, net in {"student": composition.student, "teacher.net": teacher.net if teacher else None}.items():
        if net is not None and (network := class_of(net)) is not None:
            needs = net.requirements()
            if net.target.startswith(CLASSIFIERS) and not any(f"task.{task}" in needs for task in KINDS):
                needs |= {"task.classification", "task.regression", "task.multi_label"}
            yield from task_faults(path, network, needs, kind)
    if kind == SEVERAL and teacher is not None:
        yield from several_teacher_faults(teacher)
    if kind == "segmentation" and teacher is not None and teacher.access in LEVELS and teacher.access != "white":
        yield (
            f"teacher.access={teacher.access}: a teacher that answers a class for every pixel is only had whole: set "
            "teacher.access=white"
        )
    if (
        kind == "regression"
        and teacher is not None
        and teacher.access in LEVELS
        and teacher.access not in ("white", "logits")
    ):
        yield (
            f"teacher.access={teacher.access}: a number is told whole or not at all: choose teacher.access=white, or "
            "logits for a teacher that only answers"
        )
