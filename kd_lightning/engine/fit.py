"""One fit of a teacher, stage, student or control: stored under a digest of its settings, resumable bit by bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import Tensor

from kd_lightning.config.composition import Composition, Training
from kd_lightning.config.node import thaw
from kd_lightning.config.signatures import own_code, versions
from kd_lightning.core.collapse import Collapsed
from kd_lightning.core.inference import at_once
from kd_lightning.core.notices import keep, noticing
from kd_lightning.core.strangers import read_json, read_tensors
from kd_lightning.core.tasks import Task, kept
from kd_lightning.core.time_limit import cut_short, duration
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.distributed import collectives, decisions, process_group
from kd_lightning.engine.callbacks import WatchGenerator
from kd_lightning.engine.checkpoint_reader import Marked, resumable
from kd_lightning.engine.checkpoint_writer import Resumable
from kd_lightning.engine.compiled import compile_adapters, compile_networks
from kd_lightning.engine.kept_networks import agreement_on_drawn, keep_networks
from kd_lightning.engine.own_metrics import OwnMetrics, own_metrics
from kd_lightning.engine.progress_bar import PhaseBar
from kd_lightning.engine.restart import begin_again, next_seed, restarts
from kd_lightning.engine.slices import slice_of
from kd_lightning.engine.user_callbacks import callbacks_of
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.base.protocols import Teacher
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.weights import load_weights
from kd_lightning.sources.context import Context
from kd_lightning.store.artifacts import Store, by_content, remedy
from kd_lightning.store.files import digest
from kd_lightning.teachers.black_box import QueryTeacher
from kd_lightning.teachers.white_box import FrozenTeacher
from kd_lightning.tracking.backends import Dashboards
from kd_lightning.tracking.curves import Curves, KeepCurves, replay

VERSION = 1
SILENT = ("enable_progress_bar", "enable_model_summary", "log_every_n_steps")


@dataclass(frozen=True)
class FitResult:
    """Result of a fit: the network on the CPU in eval mode, its folder, digest, report and seconds."""

    network: Normalized
    folder: Path
    key: str
    report: dict[str, Any]
    seconds: float


@dataclass
class RunContext:
    """What every fit of a run shares.

    Args:
        store: where fits are stored.
        dataset, data_key: the images and labels, and a digest of their content.
        task: loss and metrics.
        boards, callbacks: dashboards of the stages and the student, and further callbacks of every fit.
        run: name of the run, to which queries to a black-box teacher are charged.
        folder: of the run, where a student that learns in slices says how good it is.
    """

    store: Store
    dataset: Dataset
    data_key: str
    task: Task
    boards: Dashboards
    callbacks: list[Callback] = field(default_factory=list)
    run: str = "no run"
    folder: Path | None = None


def build_network(training: Training) -> Normalized:
    """Build the student's network, which takes images (N, C, H, W) in [0, 1] and normalises them itself."""
    return Normalized(training.student.build(), mean=training.data.mean, std=training.data.std)


def fit(
    training: Training,
    bench: RunContext,
    *,
    phase: str,
    teacher: Teacher | None = None,
    teacher_key: str = "none",
    source_teacher: Teacher | None = None,
    source_teacher_key: str | None = None,
    val_answers: Tensor | None = None,
    watched: bool = False,
) -> FitResult:
    """Train a student by a method on a source, or return the stored result of the same fit.

    Args:
        training: source, student, method, trainer and seed.
        bench: what the run's fits share.
        phase: name of the fit on the screen and in the result.
        teacher: the teacher, None for a fit without one.
        teacher_key: its digest, part of the fit's key.
        source_teacher: the source's own teacher, if it has one.
        source_teacher_key: its digest.
        val_answers: what is kept of the teacher's outputs on the validation images, for the agreement curve.
        watched: whether the run's dashboards follow this fit.
    """
    config = fit_config(training, bench, teacher_key, source_teacher_key)
    boards = bench.boards.of(phase) if watched else Dashboards()
    if isinstance(teacher, QueryTeacher):
        teacher.fit = bench.store.path("fit", config).name

    def build(work: Path) -> None:
        # Train; start over with another seed if the generator collapses
        while True:
            collapsed = decisions.decided(lambda: restarts(work))
            own = training.derive(seed=next_seed(training.seed, len(collapsed)))
            context = Context(
                dataset=bench.dataset,
                teacher=source_teacher or teacher,
                store=bench.store,
                keys={"data": bench.data_key, "teacher": source_teacher_key or teacher_key},
                mean=list(training.data.mean),
                std=list(training.data.std),
                order_seed=own.seed,
                rank=collectives.rank(),
                world=collectives.world(),
                device=training.device,
                precision=str(training.trainer["precision"]),
                memory_format=training.runtime.memory_format,
                needs=set(training.method.requirements()),
            )
            try:
                with noticing() as heard:
                    method, report = _train(own, bench, phase, work, context, teacher, val_answers, boards)
                report["warnings"] = heard
                break
            except Collapsed as error:
                decisions.decided(partial(begin_again, work, own.seed, error))
        decisions.decided(lambda: keep_networks(method, {**report, "restarts": collapsed}, work))

    folder = bench.store.obtain(  # the stored fit, or the one built now
        "fit", config, build, everywhere=True, students=phase == "student"
    )
    if folder not in bench.store.built and collectives.rank() == 0:
        replay(folder, boards)
    network = build_network(training)
    network.load_state_dict(read_tensors(folder / "student.safetensors", advice=remedy(folder)))
    report = read_json(folder / "fit.json", advice=remedy(folder))
    if isinstance(teacher, QueryTeacher):
        teacher.adopt(report["teacher_images"])  # also images that an earlier run paid for
    return FitResult(network.eval(), folder, digest(config), report, report["fit_seconds"])


def fit_config(
    training: Training, bench: RunContext, teacher_key: str, source_teacher_key: str | None = None
) -> dict[str, Any]:
    """Everything that determines the result of a fit, as plain data; its digest is the fit's key."""
    plain: Any = {k: getattr(training, k).plain() for k in ("source", "student", "method", "trainer")}
    plain["trainer"] = {k: v for k, v in plain["trainer"].items() if k not in SILENT}
    plain["method"] = {k: v for k, v in plain["method"].items() if (k, v) != ("on_collapse", "warn")}  # changes none
    plain |= {"metrics": thaw(own)} if (own := own_metrics(training)) else {}  # its curves are of them
    theirs = own_code(plain)
    root = bench.store.root
    plain = by_content(plain, root)
    runtime = training.runtime
    return {
        **plain,
        "init": by_content(training.init, root),
        "seed": training.seed,
        "memory_format": runtime.memory_format,
        **({"compile": runtime.compile} if runtime.compile else {}),
        **({"fold_batchnorm": True} if runtime.fold_batchnorm else {}),
        "mean": list(training.data.mean),
        "std": list(training.data.std),
        "data": bench.data_key,
        "teacher": teacher_key,
        **({"source_teacher": source_teacher_key} if source_teacher_key else {}),
        "version": [VERSION, versions(plain), *([theirs] if theirs else [])],
    }


def _train(
    training: Training,
    bench: RunContext,
    phase: str,
    work: Path,
    context: Context,
    teacher: Teacher | None,
    val_answers: Tensor | None,
    boards: Dashboards,
) -> tuple[Distiller, dict[str, Any]]:
    slice_ = slice_of(bench.folder, bench.dataset, training.data) if bench.folder and phase == "student" else None
    # Networks and method
    runtime, settings = training.runtime, training.trainer
    L.seed_everything(training.seed, verbose=False)  # the same on every rank; a method's noise differs
    network = build_network(training)
    if training.init:
        load_weights(network, training.init)
    method = training.method.build(student=network, teacher=teacher, task=bench.task)
    method.global_batch_losses = settings.get("global_batch_losses", False)
    if runtime.memory_format == "channels_last":
        method.to(memory_format=torch.channels_last)
    if runtime.fold_batchnorm and isinstance(method.teacher, FrozenTeacher):
        method.teacher.fold_batchnorm()
    if runtime.compile:
        compile_networks(method, runtime.compile)
    # Images to train and to validate on
    context.rounds = method.rounds_an_epoch()
    source = training.source.build()
    loader = source.prepare(context)
    if isinstance(method, Distill):
        lasting = isinstance(loader, TensorLoader) and loader.mix is None
        method.build_terms(bench.dataset.image_shape, len(loader.images) if lasting else None)
        if runtime.compile:
            compile_adapters(method, runtime.compile)
    val = bench.dataset.val
    val_loader = (
        None
        if val is None or not (method.trains_student or method.validates)
        else TensorLoader(
            *(val.images, val.labels),
            answers=val_answers,
            batch_size=at_once(val.images, maps=kept(bench.task) is not None),
            shuffle=False,
            rank=context.rank,
            world=context.world,
            device=context.device,
        )
    )
    # Callbacks, checkpoint and trainer
    curves = Curves(work, boards, asked=teacher if isinstance(teacher, QueryTeacher) else None)
    synthetic = "source.synthetic" in source.offers
    watch = WatchGenerator(work, bench.dataset.classes, boards, task=bench.task, synthetic=synthetic)
    checkpoint = work / "last.ckpt"
    interrupted_before = decisions.decided(checkpoint.is_file)
    goes_on_from = resumable(checkpoint, method) if interrupted_before else None
    marked = Marked(goes_on_from)
    own = {name: node.build() for name, node in own_metrics(training).items()}
    watching = [watch, KeepCurves(curves), *callbacks_of(settings, method, phase, [*own])]
    if own and val_loader is not None:
        watching.insert(0, OwnMetrics(own, bench.task, bench.dataset.classes))
    if settings.get("enable_progress_bar", True) and not any(isinstance(each, ProgressBar) for each in watching):
        watching.insert(0, PhaseBar(phase))
    trainer = settings.without("global_batch_losses", "callbacks").build(
        **process_group.environment(),
        default_root_dir=work,
        enable_checkpointing=True,
        logger=curves,
        max_time=duration(settings.get("max_time")),
        callbacks=[*watching, marked, Resumable(checkpoint, slice_=slice_), *bench.callbacks],
    )
    method.train()
    try:
        images = Images(loader, val_loader, eight_bits=isinstance(teacher, QueryTeacher))
        with marked.blaming():
            trainer.fit(method, images, ckpt_path=goes_on_from, weights_only=True)
    except SystemExit as interrupted:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from interrupted
    if watch.collapsed is not None:
        raise watch.collapsed
    # Report
    rounds, ended = trainer.fit_loop.epoch_loop.total_batch_idx + 1, cut_short(trainer, phase)
    if ended is None and rounds < int(trainer.num_training_batches) * (trainer.max_epochs or 0):
        keep(f"{phase}: a callback ended the fit after epoch {trainer.current_epoch} of {trainer.max_epochs}")
    report = {
        "phase": phase,
        "data": bench.dataset.name,
        "names": {word: training.names.get(word) for word in ("method", "student")}
        if isinstance(training, Composition)
        else {},
        "rounds": rounds,
        "student_updates": method.student_updates(rounds),
        "trains_student": method.trains_student,
        "images_synthesised": method.images_made,
        "teacher_images": method.teacher.asked if method.teacher is not None else 0,
        "fit_seconds": curves.seconds,
        "cut_short": ended,
        "precision": str(settings["precision"]),
        "memory_format": runtime.memory_format,
        "compile": runtime.compile,
        "fold_batchnorm": runtime.fold_batchnorm,
        **context.notes,
        **method.findings(),
    }
    if hasattr(method, "draw") and method.images_made and isinstance(method.teacher, FrozenTeacher):
        method.to(context.device).go_on()
        report["generated/agreement"] = agreement_on_drawn(method, bench.task, training.seed)
    return method, report
