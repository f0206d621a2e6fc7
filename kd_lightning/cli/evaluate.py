"""``kd-eval``: evaluate a student on other data, without training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from kd_lightning.cli.entry import command
from kd_lightning.config import resolvers
from kd_lightning.config.composition import Composition
from kd_lightning.core.inference import predict
from kd_lightning.core.multi_label import MultiLabel, average_precisions
from kd_lightning.core.segmentation import Segmentation, class_ious, pixel_confusion
from kd_lightning.core.tasks import Classification, Regression, Task, task_of
from kd_lightning.data.dataset import Dataset, Split, fit_to
from kd_lightning.errors import UserError
from kd_lightning.results.student_files import Student, load_student
from kd_lightning.store.artifacts import Store

READ = ("data", "artifacts", "trainer.accelerator")


@dataclass(frozen=True)
class Evaluation:
    """The scores of a student.

    Args:
        images: description of the images, such as ``test images of digits``.
        n: number of images.
        score: accuracy as a fraction, or the mean absolute error in the unit of the labels.
        parts: class name or part of the labels' range -> (number of images, score or None where there is no image).
        note: how classes were matched, unless by equal names in equal order.
        what: kind of the parts.
        metric: name of the score.
        counted: what ``parts`` count, the images unless they are pixels.
    """

    images: str
    n: int
    score: float
    parts: dict[str, tuple[int, float | None]]
    note: str = ""
    what: str = "class"
    metric: str = "accuracy"
    counted: str = "n"


def compose_data(overrides: Sequence[str], card: dict[str, Any], config_dirs: Sequence[str] = ()) -> Composition:
    """The composition of ``data=...`` and further overrides, with the image size and channels of the student.

    Args:
        overrides: as for ``kd-lightning``; ``data=NAME`` is required.
        card: of the student.
        config_dirs: further folders of groups.

    Raises:
        UserError: lists every wrong override, or names a size that the student does not accept.
    """
    from kd_lightning.config.check import examined, key_of
    from kd_lightning.config.overrides import read, refusal
    from kd_lightning.config.record import chosen

    channels, *shape = card["image_shape"]
    size = shape[0] if shape[0] == shape[1] else shape
    typed = {o.lstrip("+~").partition("=")[0]: o for o in overrides}
    if stray := [o for key, o in typed.items() if not any(key == r or key.startswith(f"{r}.") for r in READ)]:
        raise UserError(f"{stray[0]}: nothing is trained here, kd-eval reads only data and trainer.accelerator")
    if "data" not in typed:
        raise UserError("say which data: data=NAME, as kd-lightning takes it, such as data=image_folder data.root=DIR")
    wanted = {"data.size": size, "data.channels": channels, "data.mean": card["mean"], "data.std": card["std"]}
    for key in ("data.size", "data.channels"):
        if key in typed and typed[key].partition("=")[2].replace(" ", "") != str(wanted[key]).replace(" ", ""):
            raise UserError(f"{typed[key]}: the student takes {key.partition('.')[2]} {wanted[key]}; leave {key} out")
    resolvers.register()
    found = read([*overrides, *(f"{k}={v}" for k, v in wanted.items() if k not in typed)], config_dirs)
    as_trained = card.get("resize", "crop")
    if "data.resize" not in typed and chosen(found.cfg, "data.resize") not in (None, as_trained):
        return compose_data([*overrides, f"data.resize={as_trained}"], card, config_dirs)
    maps = str(chosen(found.cfg, "data.task._target_")).endswith(f".{Segmentation.__name__}")
    if isinstance(task_of(card), Segmentation) != maps:
        theirs = "maps of classes" if maps else "no maps of classes"
        raise UserError(f"the student says {_labels(task_of(card))}, the labels of these data are {theirs}")
    everything, composition = examined(found.cfg)
    wrong = [line for line in everything if key_of(line).partition(".")[0] == "data"]
    named = [key_of(line) for line in wrong]
    lines = found.problems + wrong
    for key, override in found.unset.items():
        if not any(key == name or key.startswith(f"{name}.") for name in named):
            lines.append(f"{key}: no file sets it, so type +{override}")
    if lines or composition is None:
        raise refusal(list(dict.fromkeys(lines or everything)))
    return composition


def evaluate_on(student: Student, composition: Composition) -> Evaluation:
    """Evaluate a student on the test part of a composition's data, or on all images if there is no test part.

    Raises:
        UserError: another number of classes, another unit, no image, or data that cannot be loaded.
    """
    from kd_lightning.engine.data import load_data

    card, data = student.card, composition.data
    ours = task_of(card)
    numbers = data.load.get("task") is not None
    if isinstance(ours, Classification) and not numbers and data.num_classes != ours.num_classes:
        raise UserError(f"the student knows {ours.num_classes} classes, these data have {data.num_classes}")
    dataset = load_data(data, Store(composition.artifacts.root))
    if (theirs := dataset.task).unit != ours.unit or type(theirs) is not type(ours):
        raise UserError(f"the student says {_labels(ours)}, the labels of these data are {_labels(theirs)}")
    if isinstance(ours, Segmentation | MultiLabel) and theirs.outputs != ours.outputs:
        raise UserError(f"the student knows {ours.outputs} classes, these data have {theirs.outputs}")
    split, kind = _measured(dataset)
    channels, *shape = card["image_shape"]
    images = f"{kind} of {dataset.name}"
    if isinstance(ours, Segmentation):
        return _of_maps(images, ours, student, *_matched(split, dataset, card), device=composition.device)
    split = replace(split, images=fit_to(split.images, size=shape, channels=channels))
    answers = predict(student, split.images, device=composition.device)
    if isinstance(ours, Regression):
        return _of_numbers(images, ours, answers, split.labels)
    split, note = _matched(split, dataset, card)
    if isinstance(ours, MultiLabel):
        return _of_several(images, card["classes"], answers, split.labels, note)
    right = answers.argmax(1) == split.labels
    count = torch.bincount(split.labels, minlength=len(card["classes"])).tolist()
    hits = torch.bincount(split.labels[right], minlength=len(card["classes"])).tolist()
    return Evaluation(
        images=images,
        n=len(split),
        score=sum(hits) / len(split),
        parts={c: (n, h / n if n else None) for c, n, h in zip(card["classes"], count, hits, strict=True)},
        note=note,
    )


def _labels(task: Task) -> str:
    if isinstance(task, MultiLabel):
        return "several labels an image"
    return "a class for every pixel" if isinstance(task, Segmentation) else task.unit or "classes"


def _of_numbers(images: str, task: Regression, answers: Tensor, labels: Tensor, parts: int = 8) -> Evaluation:
    """The mean absolute error over all images, and in equal parts of the range of the labels."""
    error = (task.numbers(answers) - labels.float()).abs()
    place = (task.normalise(labels) * parts).long().clamp(max=parts - 1)
    count = torch.bincount(place, minlength=parts).tolist()
    total = torch.bincount(place, error.double(), minlength=parts).tolist()
    edges = [f"{edge:.4g}" for edge in task.denormalise(torch.arange(parts + 1) / parts).tolist()]
    names = [f"{low} to {high}" for low, high in pairwise(edges)]
    return Evaluation(
        images=images,
        n=len(labels),
        score=float(error.mean()),
        parts={name: (n, t / n if n else None) for name, n, t in zip(names, count, total, strict=True)},
        what=task.unit,
        metric=f"mae ({task.unit})",
    )


def _of_several(images: str, classes: Sequence[str], answers: Tensor, labels: Tensor, note: str) -> Evaluation:
    """mAP, and the average precision of each label with the number of images that have it."""
    each, there = average_precisions(answers, labels), labels.sum(0, dtype=torch.int64).tolist()
    parts = zip(classes, there, each.tolist(), strict=True)
    return Evaluation(
        images=images,
        n=len(labels),
        score=float(each.nanmean()),
        parts={name: (n, precision if n else None) for name, n, precision in parts},
        note=note,
        what="label",
        metric="map",
    )


def _of_maps(images: str, task: Segmentation, student: Student, split: Split, note: str, *, device: str) -> Evaluation:
    """The mean IoU, and the IoU of each class with the number of its pixels."""
    masks = predict(student, split.images, keep=task.kept, device=device)
    counts = pixel_confusion(split.labels, masks, task.num_classes)
    ious, pixels = class_ious(counts), counts.sum(1).tolist()
    parts = zip(student.card["classes"], pixels, ious.tolist(), strict=True)
    return Evaluation(
        images=images,
        n=len(split),
        score=float(ious.nanmean()),
        parts={name: (n, iou if iou == iou else None) for name, n, iou in parts},
        note=note,
        metric="IoU",
        counted="pixels",
    )


def _measured(dataset: Dataset) -> tuple[Split, str]:
    judged = dataset.test or dataset.train
    if judged is not None and not judged.labelled:
        raise UserError(f"data={dataset.name} has no labels to measure against: kd-predict tells the student's answers")
    if dataset.test is not None:
        return dataset.test, "test images"
    parts = [part for part in (dataset.train, dataset.val) if part is not None]
    if not parts:
        raise UserError(f"data={dataset.name} holds no image to measure on")
    everything = Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    return everything, "images (there is no test part, so all)"


def _matched(split: Split, dataset: Dataset, card: dict[str, Any]) -> tuple[Split, str]:
    """The split with its labels in the student's numbering, and a note on how classes were matched."""
    ours, theirs = card["classes"], dataset.classes
    if ours == theirs:
        return split, ""
    if sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours):
        order = torch.tensor([ours.index(name) for name in theirs])
        if isinstance(dataset.task, Segmentation):
            order = torch.cat([order, torch.arange(len(order), 256)]).to(torch.uint8)  # void stays
        if isinstance(dataset.task, MultiLabel):
            columns = torch.zeros_like(split.labels).index_copy_(1, order, split.labels)
            return replace(split, labels=columns), "labels matched by name, their order differs"
        return replace(split, labels=order[split.labels.long()]), "classes matched by name, their order differs"
    i = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return split, f"classes matched by position, their names differ: {ours[i]!r} of the student is {theirs[i]!r} here"


def render(evaluation: Evaluation) -> str:
    """A table with a line per class, or part of the range, and one for all."""
    rows = [[name, n, "–" if a is None else f"{a:.4f}"] for name, (n, a) in evaluation.parts.items()]
    pixels = evaluation.counted == "pixels"
    n = sum(n for n, _ in evaluation.parts.values()) if pixels else evaluation.n
    rows.append(["mean" if pixels else "all", n, f"{evaluation.score:.4f}"])
    headers = [evaluation.what, evaluation.counted, evaluation.metric]
    table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=_ALIGNED)
    return "\n".join([f"{evaluation.n} {evaluation.images}", *filter(None, [evaluation.note]), "", table]) + "\n"


_ALIGNED = ("left", "right", "right")


@command("kd-eval")
def main(argv: Sequence[str] | None) -> None:
    """Print accuracy or error, overall and by part."""
    parser = argparse.ArgumentParser(prog="kd-eval", description="Measure a student on other data; nothing is trained.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, or a file that kd-export wrote")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="+", help="data=NAME and its settings")
    parser.add_argument("--config-dir", metavar="DIR", action="append", default=[], help="groups of your own")
    parser.add_argument("--trust", action="store_true", help="import the student's network from anywhere")
    args = parser.parse_args(argv)
    sys.path.append(str(Path.cwd()))  # finds a user's data set in the working directory
    student = load_student(args.run, trust=args.trust)
    composition = compose_data(args.overrides, student.card, args.config_dir)
    print(render(evaluate_on(student, composition)), end="")


if __name__ == "__main__":
    sys.exit(main())
