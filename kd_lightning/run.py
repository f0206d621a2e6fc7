"""One run, read from top to bottom: data, teacher, student, controls, test, result."""

from __future__ import annotations

import inspect
import json
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from kd_lightning.artifacts import FORMAT_VERSION, Store, file_digest, write_json, writing
from kd_lightning.check import check
from kd_lightning.data.dataset import Dataset
from kd_lightning.errors import UserError
from kd_lightning.export import save_student
from kd_lightning.fitting import Bench, Fitted, device_of, fast_precision, fit
from kd_lightning.inference import predict
from kd_lightning.tasks import Classification, evaluate
from kd_lightning.teacher.obtain import Obtained, obtain_teacher
from kd_lightning.variant import variant

UNIMPORTANT = ("artifacts", "sweep", "main")


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
    outcome = {"status": "failed", "reason": "it ended before anything was done"}
    try:
        check(cfg)
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
            outcome = {**_header(cfg, names), **outcome, "metrics": {}}
        write_json(folder / "result.json", outcome)
    return outcome


def _kept_or_made(cfg: DictConfig, folder: Path, names: Mapping[str, str | None]) -> dict[str, Any]:
    with open_dict(cfg):
        if cfg.trainer.precision == "auto":
            cfg.trainer.precision = fast_precision(cfg.trainer.accelerator)
    store = Store(cfg.artifacts.root, reuse=cfg.artifacts.reuse)
    clock = Clock()
    with clock("data"):
        dataset = load_data(cfg, store)
        data_key = dataset_digest(dataset)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    identity = {
        **{k: v for k, v in plain.items() if k not in UNIMPORTANT},
        "data": data_key,
        "files": [file_digest(f) for f in (cfg.teacher.weights, cfg.init) if f and Path(f).expanduser().is_file()],
        "version": version("kd_lightning"),
    }

    def build(work: Path) -> None:
        write_json(work / "result.json", _produce(cfg, store, dataset, data_key, clock, work, names))

    before = time.time()
    kept = store.obtain("run", identity, build)
    with writing(folder):
        shutil.copytree(kept, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("artifact.json"))
    result = json.loads((folder / "result.json").read_text())
    result["stored"] = kept not in store.built
    if result["stored"]:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime((kept / "result.json").stat().st_mtime or before))
        print(
            f"This composition was run before: its stored result of {made} follows (artifacts.reuse=false runs anew)."
        )
    return result


def _produce(
    cfg: DictConfig,
    store: Store,
    dataset: Dataset,
    data_key: str,
    clock: Clock,
    work: Path,
    names: Mapping[str, str | None],
) -> dict[str, Any]:
    loggers = [instantiate(logger, save_dir=str(work)) for logger in (cfg.logger or {}).values()]
    bench = Bench(store, dataset, data_key, Classification(dataset.num_classes), loggers)
    teacher = obtain_teacher(cfg, bench)
    answers = teacher and teacher.answers(dataset.test)  # first: a small eval_budget goes to the result, not the curve

    student = fit(
        cfg,
        bench,
        phase="student",
        teacher=teacher and teacher.hand_out(),
        teacher_key=teacher.key if teacher else "none",
        val_answers=teacher and teacher.answers(dataset.val),
        watched=True,
    )
    controls = {name: _control(name, node, cfg, bench, teacher, student) for name, node in cfg.controls.items()}

    with clock("test"):
        metrics: dict[str, float | None] = {}
        test = dataset.test
        if teacher is not None:
            accuracy = evaluate(bench.task, answers, test.labels, None) if answers is not None and test else {}
            metrics |= {f"teacher/{k}": accuracy.get(k) for k in bench.task.metrics()}
        for name, fitted in {"test": student, **controls}.items():
            if fitted is None or test is None:
                measured: dict[str, float | None] = dict.fromkeys([*bench.task.metrics(), "agreement"])
            else:
                output = predict(fitted.network, test.images, device=device_of(cfg))
                measured = evaluate(bench.task, output, test.labels, answers)
            metrics |= {f"{name}/{k}": v for k, v in measured.items()}
        if "generated/agreement" in student.report:
            metrics["generated/agreement"] = student.report["generated/agreement"]

    _keep_files(student, work)
    networks = {"teacher": teacher and teacher.net, "student": student.network}
    networks |= {name: fitted and fitted.network for name, fitted in controls.items()}
    seconds = {"teacher": teacher.seconds if teacher else 0.0, "student": student.seconds}
    seconds |= {name: fitted.seconds for name, fitted in controls.items() if fitted} | clock.seconds
    save_student(student.network, work, _card(cfg, dataset, metrics, teacher))
    return {
        **_header(cfg, names),
        "status": "ok",
        "reason": None,
        "objective": metrics[f"test/{bench.task.headline}"],
        "metrics": metrics,
        "paper": OmegaConf.to_container(cfg.paper) if cfg.paper else {},
        "models": {k: {"parameters": _parameters(net)} for k, net in networks.items() if net is not None},
        "cost": {
            "seconds": {k: round(v, 2) for k, v in {**seconds, "total": sum(seconds.values())}.items()},
            "teacher_images": student.report["teacher_images"],
            "queries": student.report.get(
                "queries", 0 if not teacher or teacher.white else student.report["teacher_images"]
            ),
            "images_synthesised": student.report["images_synthesised"],
            "peak_memory_bytes": _peak_memory(),
        },
        "dataset": {"layout": dataset.layout, "encoding": dataset.encoding, "skipped": dataset.skipped},
        "precision": student.report["precision"],
        "memory_format": student.report["memory_format"],
        "device": torch.cuda.get_device_name() if device_of(cfg) != "cpu" else f"cpu x{torch.get_num_threads()}",
    }


def _control(
    name: str, node: DictConfig, cfg: DictConfig, bench: Bench, teacher: Obtained | None, student: Fitted
) -> Fitted | None:
    """The student's network trained another way; None where it cannot be, such as real labels without data."""
    changes = {k: v for k, v in node.items() if k not in ("updates", "teacher")}
    own = variant(cfg, changes)
    if node.get("updates") == "student":
        epochs = own.trainer.max_epochs
        own.source.rounds = max(1, round(student.report["student_updates"] / epochs))
    asks = node.get("teacher", True)
    if asks and (teacher is None or not teacher.white):
        return None
    if not asks and bench.dataset.train is None:
        return None
    return fit(
        own,
        bench,
        phase=name,
        teacher=teacher.hand_out() if asks and teacher else None,
        teacher_key=teacher.key if asks and teacher else "none",
    )


def load_data(cfg: DictConfig, store: Store) -> Dataset:
    """The data set that the composition names; folders of images keep their decoded form in the store."""
    takes_store = "store" in inspect.signature(get_method(cfg.data.load._target_)).parameters
    try:
        dataset = instantiate(cfg.data.load, _convert_="all", **({"store": store} if takes_store else {}))
    except InstantiationException as error:  # Hydra's wrapping hides what the user can mend
        raise error.__cause__ if isinstance(error.__cause__, UserError) else error from None
    if dataset.num_classes != cfg.data.num_classes:
        raise UserError(
            f"data.num_classes={cfg.data.num_classes}, but {dataset.name} has {dataset.num_classes} classes: "
            f"set data.num_classes={dataset.num_classes}"
        )
    return dataset


def dataset_digest(dataset: Dataset) -> str:
    """A hash of every pixel and label."""
    import hashlib

    total = hashlib.sha256(json.dumps([dataset.name, dataset.classes, dataset.image_shape]).encode())
    for split in (dataset.train, dataset.val, dataset.test):
        if split is not None:
            total.update(split.images.contiguous().numpy())
            total.update(split.labels.contiguous().numpy())
    return total.hexdigest()[:12]


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


def _header(cfg: DictConfig, names: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "system": names.get("method"),
        "experiment": names.get("experiment"),
        "method": names.get("method"),
        "data": names.get("data"),
        "source": names.get("source"),
        "teacher": names.get("teacher"),
        "student": names.get("student"),
        "scale": names.get("scale"),
        "seed": cfg.get("seed"),
        "versions": {p: version(p) for p in ("kd_lightning", "torch", "lightning", "torchvision")}
        | {"python": platform.python_version()},
        "git": _git(),
    }


def _card(cfg: DictConfig, dataset: Dataset, metrics: Mapping[str, Any], teacher: Obtained | None) -> dict[str, Any]:
    return {
        "network": OmegaConf.to_container(cfg.student, resolve=True),
        "classes": dataset.classes,
        "image_shape": dataset.image_shape,
        "mean": list(cfg.data.mean),
        "std": list(cfg.data.std),
        "metrics": dict(metrics),
        "teacher": teacher.key if teacher else None,
        "seed": cfg.seed,
    }


def _keep_files(student: Fitted, work: Path) -> None:
    with writing(work):
        for name in ("last.ckpt", "metrics.csv"):
            if (student.folder / name).is_file():
                shutil.copy2(student.folder / name, work / name)
        if (student.folder / "samples").is_dir():
            shutil.copytree(student.folder / "samples", work / "samples", dirs_exist_ok=True)


def _parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _git() -> str | None:
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
