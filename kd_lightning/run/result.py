"""What a run leaves: its result as plain data, the student's card, and files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd_lightning.config.composition import Composition
from kd_lightning.config.node import thaw
from kd_lightning.data.dataset import Dataset
from kd_lightning.engine.fit import FitResult, RunContext
from kd_lightning.results.provenance import header_of, parameters, peak_memory
from kd_lightning.results.student_files import save_student
from kd_lightning.run.measured import ADAPTED, Fits, trained
from kd_lightning.run.teacher import TeacherHandle
from kd_lightning.store.files import copy_into, writing


def result_of(
    composition: Composition,
    bench: RunContext,
    fits: Fits,
    metrics: Mapping[str, float | None],
    phases: Mapping[str, float],
) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
        composition: of the run.
        bench: what its fits shared.
        fits: teachers and fits.
        metrics: by ``NAME/METRIC``.
        phases: seconds of what is no fit.
    """
    teacher, asked, stages, student, controls = (
        fits.teacher,
        fits.source_teacher,
        fits.stages,
        fits.student,
        fits.controls,
    )
    dataset, device, trainings = bench.dataset, composition.device, [*stages.values(), student]
    networks: dict[str, Any] = {"teacher": teacher.net} if teacher and teacher.net else {}
    networks |= {name: stages[name].network for name in composition.teaching}
    if trained(student):
        networks["student"] = student.network
    spent = teacher.spent() if teacher else {}
    seconds = {"teacher": teacher.seconds if teacher else 0.0, **{k: v.seconds for k, v in stages.items()}}
    seconds |= {"student": student.seconds, **({"source_teacher": asked.seconds} if asked else {})}
    seconds |= {name: fitted.seconds for name, fitted in controls.items() if fitted} | dict(phases)
    return {
        **header_of(composition),
        "status": "ok",
        "reason": None,
        "ended_by": {
            name: f.report["cut_short"]
            for name, f in {"teacher": teacher, **stages, "student": student, **controls}.items()
            if f and f.report.get("cut_short")
        },
        "warnings": [
            line
            for f in (teacher, *stages.values(), student, *controls.values())
            if f
            for line in f.report.get("warnings", ())
        ],
        "restarts": {f.report["phase"]: f.report["restarts"] for f in trainings if f.report.get("restarts")},
        "objective": objective(metrics, bench.task.headline),
        "metrics": metrics,
        "further_metrics": list(composition.metrics),
        "result_name": composition.result_name,
        "task": bench.task.described(),
        "paper": thaw(composition.paper.get(composition.names.get("method") or "", {}))
        if composition.as_published
        else {},
        "teacher_kept": teacher.kept if teacher else None,
        "models": {k: {"parameters": parameters(net)} for k, net in networks.items()},
        "cost": {
            "seconds": {k: round(v, 2) for k, v in {**seconds, "total": sum(seconds.values())}.items()},
            "teacher_images": sum(f.report["teacher_images"] for f in trainings),
            "queries": spent["training"]["used"] if spent else sum(f.report.get("queries", 0) for f in trainings),
            "images_synthesised": sum(f.report["images_synthesised"] for f in trainings),
            "updates": student.report["student_updates"],
            "peak_memory_bytes": peak_memory(),
            **({"asking": spent, "price": sum(bucket["cost"] for bucket in spent.values())} if spent else {}),
        },
        **(teacher.told(fits.answers is not None, {**stages, "student": student}) if teacher else {}),
        **_class_counts({**stages, "student": student, **controls}),
        "dataset": {
            "layout": dataset.layout,
            "encoding": dataset.encoding,
            "skipped": dataset.skipped,
            "unread": dict(dataset.unread),
            "found": dataset.found,
        },
        **{key: student.report.get(key) for key in ("precision", "memory_format", "compile", "fold_batchnorm")},
        "device": torch.cuda.get_device_name() if device != "cpu" else f"cpu x{torch.get_num_threads()}",
    }


def _class_counts(fits: Mapping[str, FitResult | None]) -> dict[str, Any]:
    """How many images the teacher put in each class, of every fit whose source asked it; nothing if none did."""
    told = {name: f.report["class_counts"] for name, f in fits.items() if f and "class_counts" in f.report}
    return {"class_counts": told} if told else {}


def objective(metrics: Mapping[str, float | None], headline: str) -> float | None:
    """What a search optimises: the student's headline metric, or the FID of a run that trains only a generator."""
    student = metrics[f"test/{headline}"]
    return student if student is not None else next((v for k, v in metrics.items() if "/FID-" in k), None)


def card_of(
    composition: Composition, dataset: Dataset, metrics: Mapping[str, Any], teacher: TeacherHandle | None
) -> dict[str, Any]:
    """What stands beside the student's weights: network, classes, images, metrics."""
    resize = composition.data.load.get("resize", "crop")
    return {
        "network": composition.student.plain(),
        "classes": dataset.classes,
        "task": dataset.task.described(),
        "image_shape": dataset.image_shape,
        "mean": list(composition.data.mean),
        "std": list(composition.data.std),
        "metrics": dict(metrics),
        "teacher": teacher.key if teacher else None,
        "seed": composition.seed,
        **({"resize": resize} if resize != "crop" else {}),
    }


def keep_files(stages: Mapping[str, FitResult], student: FitResult, card: Mapping[str, Any], work: Path) -> None:
    """Save the student, the stages' networks under ``stages/NAME``, and the last fit's checkpoint and curves."""
    with writing(work):
        for fitted in (*stages.values(), student):
            for name in ("last.ckpt", "metrics.csv"):
                if (fitted.folder / name).is_file():
                    shutil.copyfile(fitted.folder / name, work / name)
            if (fitted.folder / "samples").is_dir():
                copy_into(fitted.folder / "samples", work / "samples")
        for name, stage in stages.items():
            (work / "stages" / name).mkdir(parents=True, exist_ok=True)
            for file in stage.folder.glob("*.safetensors"):
                if file.name != "student.safetensors" or trained(stage):
                    shutil.copyfile(file, work / "stages" / name / file.name)
        if not trained(student):
            shutil.copyfile(student.folder / "generator.safetensors", work / "generator.safetensors")
        if (adapted := student.folder / ADAPTED).is_file():
            shutil.copyfile(adapted, work / ADAPTED)
    if trained(student):
        save_student(student.network, work, card)
