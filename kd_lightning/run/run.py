"""One run, read from top to bottom: data, teacher, student, controls, test, result."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from kd_lightning.config import ranks
from kd_lightning.config.check import check
from kd_lightning.config.signatures import versions
from kd_lightning.core.inference import predict
from kd_lightning.core.tasks import evaluate
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.load import dataset_digest, load_data
from kd_lightning.distributed import collectives
from kd_lightning.distributed.device import device_of, fast_precision
from kd_lightning.engine.fit import Bench, Fitted, fit
from kd_lightning.metrics.confusion_matrix import draw_answers
from kd_lightning.results.provenance import header, parameters, peak_memory
from kd_lightning.results.student_files import save_student
from kd_lightning.run.stages_and_controls import control_of, handed, referring, stage_of, weak_teacher
from kd_lightning.run.teacher import Obtained, obtain_source_teacher, obtain_teacher
from kd_lightning.store.artifacts import Store, copy_into, file_digest, names_file, remedy, write_json, writing
from kd_lightning.store.strangers import read_json
from kd_lightning.tracking.backends import watching

UNIMPORTANT = ("artifacts", "sweep", "main", "plan")
NOT_COPIED = ("artifact.json", "latest-run", "debug*.log")  # W&B's links lead out of the folder


def run(cfg: DictConfig, folder: Path, names: Mapping[str, str | None]) -> dict[str, Any]:
    """Run a composition and leave its result in ``folder``.

    Args:
        cfg: the composition.
        folder: the run folder; gets ``result.json`` whatever happens.
        names: the chosen members of the groups, for the result.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: something the user can mend; ``result.json`` says ``failed`` and why.
        KeyboardInterrupt: the user stopped it; the same command goes on.
    """
    outcome: dict[str, Any] = {"status": "failed", "reason": "it ended before anything was done"}
    try:
        collectives.decided(lambda: check(cfg))
        result = _kept_or_made(cfg, folder, names)
        outcome = result
    except KeyboardInterrupt:
        outcome = {"status": "stopped", "reason": "interrupted; the same command goes on from the last checkpoint"}
        raise
    except BaseException as error:
        outcome["reason"] = str(error) or type(error).__name__
        raise
    finally:
        if outcome["status"] != "ok":
            outcome = {**header(cfg, names), **outcome, "metrics": {}}
        if collectives.rank() == 0:
            write_json(folder / "result.json", outcome)
    return outcome


def settle(cfg: DictConfig, names: Mapping[str, str | None], *, planning: bool = False) -> None:
    """Put in what only the command and the machine know: the chosen members, the ranks, and whatever is ``auto``.

    Args:
        cfg: the composition.
        names: the chosen members of the groups.
        planning: whether the ranks need not be there.
    """
    with open_dict(cfg):
        cfg.names = {**cfg.names, **names}
        if cfg.trainer.precision == "auto":
            cfg.trainer.precision = collectives.decided(lambda: fast_precision(cfg.trainer.accelerator))
    ranks.settle(cfg.trainer, planning=planning)


def identity(cfg: DictConfig, data_key: str) -> dict[str, Any]:
    """Everything that determines a run's result, as plain data."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    own = {k: v for k, v in plain.items() if k not in UNIMPORTANT}
    own["teacher"] = {k: v for k, v in own["teacher"].items() if k not in ("ledger", "purse", "pace")}
    files = [file_digest(file) for file in _files(own)]
    return {**own, "data": data_key, "files": files, "version": [version("kd_lightning"), versions(own)]}


def _files(node: Any) -> Iterator[str]:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _files(value)
    if names_file(node):
        yield node
    elif isinstance(node, str) and "/" in node:  # a run folder, whose student is read
        yield from filter(names_file, (f"{node}/student.safetensors", f"{node}/student.json"))


def _kept_or_made(cfg: DictConfig, folder: Path, names: Mapping[str, str | None]) -> dict[str, Any]:
    settle(cfg, names)
    collectives.decided(lambda: _leave_composition(cfg, folder))
    store = Store(cfg.artifacts.root, reuse=cfg.artifacts.reuse, decided=collectives.decided)
    clock = Clock()
    with clock("data"):
        dataset = load_data(cfg, store)
        data_key = dataset_digest(dataset)

    made_of = identity(cfg, data_key)
    name = store.path("run", made_of).name

    def build(work: Path) -> None:
        with watching(cfg, work, folder) as boards:
            bench = Bench(store, dataset, data_key, dataset.task, boards, run=name)
            result = _produce(cfg, bench, clock, work, names)
        collectives.decided(lambda: write_json(work / "result.json", result))

    before = time.time()
    kept = store.obtain("run", made_of, build, everywhere=True)
    collectives.decided(lambda: _copied(kept, folder))
    result = read_json(kept / "result.json", advice=remedy(kept))
    result["stored"] = kept not in store.built
    if result["stored"] and collectives.rank() == 0:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime((kept / "result.json").stat().st_mtime or before))
        print(
            f"This composition was run before: its stored result of {made} follows (artifacts.reuse=false runs anew)."
        )
    return result


def _leave_composition(cfg: DictConfig, folder: Path) -> None:
    """Write what the composition comes to over what Hydra noted: plain values, which others read without resolving."""
    file = folder / ".hydra" / "config.yaml"
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(".config.yaml.part")
        part.write_text(OmegaConf.to_yaml(cfg, resolve=True))
        part.replace(file)


def _copied(kept: Path, folder: Path) -> None:
    with writing(folder):
        copy_into(kept, folder, NOT_COPIED)


def _produce(
    cfg: DictConfig, bench: Bench, clock: Clock, work: Path, names: Mapping[str, str | None]
) -> dict[str, Any]:
    dataset = bench.dataset
    teacher = obtain_teacher(cfg, bench)
    # before validation's: a small eval_budget goes to the result, not to the curve
    answers = teacher.answers(dataset.test) if teacher else None

    stages: dict[str, Fitted] = {}
    for stage in cfg.stages:
        own = stage_of(cfg, stage, stages)
        given = handed(teacher, stage, obtain_source_teacher(own, bench))
        stages[stage.name] = fit(own, bench, phase=stage.name, watched=True, **given)
    cfg = referring(cfg, stages)
    val_answers = teacher.answers(dataset.val) if teacher else None
    asked = obtain_source_teacher(cfg, bench)
    given = handed(teacher, source_teacher=asked)
    student = fit(cfg, bench, phase="student", val_answers=val_answers, watched=True, **given)
    controls = {name: _control(name, node, cfg, bench, teacher, student) for name, node in cfg.controls.items()}

    with clock("test"):
        metrics: dict[str, float | None] = {}
        test = dataset.test
        if teacher is not None:
            accuracy = evaluate(bench.task, answers, test.labels, None) if answers is not None and test else {}
            metrics |= {f"teacher/{k}": accuracy.get(k) for k in bench.task.metrics()}
        for name, fitted in {"test": student, **controls}.items():
            if fitted is None or test is None or not trained(fitted):
                measured: dict[str, float | None] = dict.fromkeys([*bench.task.metrics(), "agreement"])
            else:
                output = predict(fitted.network, test.images, device=device_of(cfg))
                measured = evaluate(bench.task, output, test.labels, answers)
                if name == "test" and collectives.rank() == 0:
                    draw_answers(work / "plots", bench.boards, dataset, output, test.labels, answers)
            metrics |= {f"{name}/{k}": v for k, v in measured.items()}
            if name == "test" and cfg.result_name:
                metrics |= {f"{cfg.result_name}/{k}": v for k, v in measured.items()}
        for name, node in cfg.metrics.items():
            measure = instantiate(node, _convert_="all")
            metrics |= _further(name, measure, student, teacher, test, device_of(cfg), work / "samples")
        metrics |= {
            f"gate/{name}": gate["value"] for name, gate in student.report.get("pool", {}).get("gates", {}).items()
        }
        if "generated/agreement" in student.report:
            metrics["generated/agreement"] = student.report["generated/agreement"]

    if collectives.rank() == 0 and (weak := weak_teacher(cfg.controls, metrics, bench.task)):
        warnings.warn(weak, stacklevel=2)
    bench.boards.numbers({k: v for k, v in metrics.items() if v is not None}, student.report["rounds"])
    fits = [*stages.values(), student]
    networks = {"teacher": teacher.net} if teacher and teacher.net else {}
    if trained(student):
        networks["student"] = student.network
    spent = teacher.spent() if teacher else {}
    seconds = {"teacher": teacher.seconds if teacher else 0.0, **{k: v.seconds for k, v in stages.items()}}
    seconds |= {"student": student.seconds, **({"source_teacher": asked.seconds} if asked else {})}
    seconds |= {name: fitted.seconds for name, fitted in controls.items() if fitted} | clock.seconds
    card = _card(cfg, dataset, metrics, teacher)
    collectives.decided(lambda: _keep(stages, student, card, work))
    if trained(student):
        bench.boards.student(work, card)
    return {
        **header(cfg, names),
        "status": "ok",
        "reason": None,
        "ended_by": {
            name: f.report["cut_short"]
            for name, f in {"teacher": teacher, **stages, "student": student, **controls}.items()
            if f and f.report.get("cut_short")
        },
        "restarts": {f.report["phase"]: f.report["restarts"] for f in fits if f.report.get("restarts")},
        "objective": metrics[f"test/{bench.task.headline}"],
        "metrics": metrics,
        "result_name": cfg.result_name,
        "task": bench.task.described(),
        "paper": OmegaConf.to_container(cfg.paper).get(names.get("method"), {}) if cfg.as_published else {},
        "teacher_kept": teacher.kept if teacher else None,
        "models": {k: {"parameters": parameters(net)} for k, net in networks.items()},
        "cost": {
            "seconds": {k: round(v, 2) for k, v in {**seconds, "total": sum(seconds.values())}.items()},
            "teacher_images": sum(f.report["teacher_images"] for f in fits),
            "queries": spent["training"]["used"] if spent else sum(f.report.get("queries", 0) for f in fits),
            "images_synthesised": sum(f.report["images_synthesised"] for f in fits),
            "updates": student.report["student_updates"],
            "peak_memory_bytes": peak_memory(),
            **({"asking": spent, "price": sum(bucket["cost"] for bucket in spent.values())} if spent else {}),
        },
        **(teacher.told(answers is not None, {**stages, "student": student}) if teacher else {}),
        "dataset": {"layout": dataset.layout, "encoding": dataset.encoding, "skipped": dataset.skipped},
        **{key: student.report.get(key) for key in ("precision", "memory_format", "compile", "fold_batchnorm")},
        "device": torch.cuda.get_device_name() if device_of(cfg) != "cpu" else f"cpu x{torch.get_num_threads()}",
    }


def _further(
    name: str, measure: Any, student: Fitted, teacher: Obtained | None, test: Split | None, device: str, samples: Path
) -> dict[str, float | None]:
    """What a member of ``metrics`` says of the student; nothing without test images or the teacher it needs."""
    if test is None or ("teacher.gradients" in measure.needs and (teacher is None or teacher.net is None)):
        return {}
    network = student.network if trained(student) else None
    found = measure(network, teacher and teacher.net, test, device=device, samples=samples)
    return {f"{name}/{k}" if k else name: v for k, v in found.items()}


def trained(fitted: Fitted) -> bool:
    """Whether the fit was one of its student, and not of a generator alone."""
    return fitted.report.get("trains_student", True)


def _control(
    name: str, node: DictConfig, cfg: DictConfig, bench: Bench, teacher: Obtained | None, student: Fitted
) -> Fitted | None:
    own = control_of(node, cfg, bench.dataset, teacher, student)
    if own is None:
        return None
    return fit(own, bench, phase=name, **handed(teacher, node, obtain_source_teacher(own, bench)))


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


def _card(cfg: DictConfig, dataset: Dataset, metrics: Mapping[str, Any], teacher: Obtained | None) -> dict[str, Any]:
    return {
        "network": OmegaConf.to_container(cfg.student, resolve=True),
        "classes": dataset.classes,
        "task": dataset.task.described(),
        "image_shape": dataset.image_shape,
        "mean": list(cfg.data.mean),
        "std": list(cfg.data.std),
        "metrics": dict(metrics),
        "teacher": teacher.key if teacher else None,
        "seed": cfg.seed,
    }


def _keep(stages: Mapping[str, Fitted], student: Fitted, card: Mapping[str, Any], work: Path) -> None:
    """The student, what stages left under ``stages/NAME``, and of the files of one name the last fit's."""
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
    if trained(student):
        save_student(student.network, work, card)
