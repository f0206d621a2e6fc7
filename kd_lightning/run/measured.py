"""Metrics of a run's networks on the test images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from kd_lightning.config.composition import Composition
from kd_lightning.core.inference import predict
from kd_lightning.core.multi_label import MultiLabel, average_precisions
from kd_lightning.core.notices import keep
from kd_lightning.core.own_metrics import add, values
from kd_lightning.core.segmentation import Segmentation, class_ious, pixel_confusion
from kd_lightning.core.strangers import read_tensors
from kd_lightning.core.tasks import evaluate, kept
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.distributed import collectives
from kd_lightning.engine.fit import FitResult, RunContext
from kd_lightning.metrics.confusion_matrix import draw_answers
from kd_lightning.metrics.shortcomings import shortcomings
from kd_lightning.networks.normalized import Normalized
from kd_lightning.run.teacher import TeacherHandle
from kd_lightning.store.artifacts import remedy

ADAPTED = "adapted.safetensors"
"""The teacher's copy that a fit trained."""


@dataclass(frozen=True)
class Fits:
    """The teachers and fits of a run, and what is kept of the teacher's answers to the test images."""

    teacher: TeacherHandle | None
    source_teacher: TeacherHandle | None
    answers: Tensor | None
    stages: Mapping[str, FitResult]
    student: FitResult
    controls: Mapping[str, FitResult | None]


def tested(
    composition: Composition, bench: RunContext, fits: Fits, work: Path
) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """Metrics of teacher, student, stages that teach and controls on the test images, by ``NAME/METRIC``.

    None where not measured. And what :func:`by_class` gives of them.
    """
    parts: dict[str, dict[str, float | None]] = {}
    dataset, task, answers, student = bench.dataset, bench.task, fits.answers, fits.student
    test = dataset.test
    metrics: dict[str, float | None] = {}
    if fits.teacher is not None:
        if answers is not None and test:
            parts |= by_class("teacher", dataset, answers)
        accuracy = evaluate(task, answers, test.labels, None) if answers is not None and test else {}
        metrics |= {f"teacher/{k}": accuracy.get(k) for k in task.metrics()}
    outputs: Tensor | None = None
    teaching = {name: fits.stages[name] for name in composition.teaching}
    for name, fitted in {"test": student, **teaching, **fits.controls}.items():
        if fitted is None or test is None or not trained(fitted):
            measured: dict[str, float | None] = dict.fromkeys([*task.metrics(), "agreement"])
        else:
            output = predict(fitted.network, test.images, keep=kept(task), device=composition.device)
            measured = evaluate(task, output, test.labels, answers)
            parts |= by_class(name, dataset, output)
            if name == "test":
                outputs = output
                for line in shortcomings(task, output, test.labels, dataset.classes) if test.labelled else ():
                    keep(line)
            if name == "test" and test.labelled and collectives.rank() == 0:
                draw_answers(work / "plots", bench.boards, dataset, output, test.labels, answers)
        metrics |= {f"{name}/{k}": v for k, v in measured.items()}
        if name == "test" and composition.result_name:
            metrics |= {f"{composition.result_name}/{k}": v for k, v in measured.items()}
    for name, net in _adapted(fits).items():
        measured = (
            {}
            if test is None or not test.labelled
            else evaluate(task, predict(net, test.images, device=composition.device), test.labels, None)
        )
        metrics |= {f"{name}/{k}": measured.get(k) for k in task.metrics()}
    labelled = test if test is not None and test.labelled else None
    for name, node in composition.metrics.items():
        measure = node.build()
        if isinstance(measure, Metric):
            if outputs is not None and labelled is not None:
                add(name, measure, task, outputs, labelled.labels)
                metrics |= values(name, measure, dataset.classes)
        else:
            metrics |= _further(name, measure, student, fits.teacher, labelled, composition.device, work / "samples")
    metrics |= {f"gate/{name}": gate["value"] for name, gate in student.report.get("pool", {}).get("gates", {}).items()}
    told = ("generated/agreement", "chosen/")
    metrics |= {key: value for key, value in student.report.items() if key.startswith(told)}
    return metrics, parts


def by_class(name: str, dataset: Dataset, output: Tensor) -> dict[str, dict[str, float | None]]:
    """Under ``name``, the IoU of each class, or the average precision of each label where an image has several.

    Empty for other labels; None for a class that no test image has.

    Args:
        name: of the network.
        dataset: has the test images and the classes.
        output: what is kept of the network's answers to the test images.
    """
    if dataset.test is None or not dataset.test.labelled:
        return {}
    if isinstance(dataset.task, Segmentation):
        found = class_ious(pixel_confusion(dataset.test.labels, output, dataset.num_classes))
    elif isinstance(dataset.task, MultiLabel):
        found = average_precisions(output, dataset.test.labels)
    else:
        return {}
    return {name: {c: None if v != v else v for c, v in zip(dataset.classes, found.tolist(), strict=True)}}


def _further(
    name: str,
    measure: Any,
    student: FitResult,
    teacher: TeacherHandle | None,
    test: Split | None,
    device: str,
    samples: Path,
) -> dict[str, float | None]:
    """Values of one of the further ``metrics``; empty without test images or the teacher that it needs."""
    if test is None or ("teacher.gradients" in measure.needs and (teacher is None or teacher.net is None)):
        return {}
    network = student.network if trained(student) else None
    where: dict[str, Any] = {"device": device, "samples": samples}
    if "generator" in measure.needs:
        where["weights"] = student.folder / "generator.safetensors"
    found = measure(network, teacher and teacher.net, test, **where)
    return {f"{name}/{k}" if k else name: v for k, v in found.items()}


def _adapted(fits: Fits) -> dict[str, Normalized]:
    """The copy of the teacher that the student's fit trained, by the name of its file; empty for most methods."""
    file = fits.student.folder / ADAPTED
    if fits.teacher is None or fits.teacher.net is None or not file.is_file():
        return {}
    net = copy.deepcopy(fits.teacher.net)
    net.load_state_dict(read_tensors(file, advice=remedy(fits.student.folder)))
    return {"adapted": net}


def trained(fitted: FitResult) -> bool:
    """Whether the fit trained its student, and not only a generator."""
    return fitted.report.get("trains_student", True)
