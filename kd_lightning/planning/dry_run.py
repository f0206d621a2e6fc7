"""Estimates the cost of a fit from a few timed rounds on a temporary store, with the report of a full fit."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from kd_lightning.config.composition import Training
from kd_lightning.data.loader import TensorLoader
from kd_lightning.engine.checkpoint_reader import read_checkpoint
from kd_lightning.engine.fit import FitResult, RunContext, fit, fit_config
from kd_lightning.errors import UserError
from kd_lightning.methods.base.protocols import Teacher
from kd_lightning.planning.dry_run_store import Missing, Overlay, Probe, now_on_device
from kd_lightning.planning.pool_cost import TRIED, Outlook, outlook, shortened
from kd_lightning.sources.context import Context
from kd_lightning.sources.synthetic import Synthetic, answers_config
from kd_lightning.store.artifacts import Store
from kd_lightning.store.files import digest, size_of
from kd_lightning.teachers.remote.dry_run import Planned

ROUNDS, WARM, PATIENCE = 20, 5, 30.0
"""Timed rounds, warm-up rounds before them, and seconds after which timing stops early."""

KEPT, MISSING, PROMISED = "kept", "to be made", "made by an earlier job"


@dataclass
class Step:
    """One row of a plan: something that a run needs.

    Args:
        name: the phase that makes it.
        state: ``kept``, ``to be made`` ..., in words.
        seconds: remaining time; None if it takes none.
        size: bytes on the disk.
        images: images that the teacher has yet to be asked about.
        rounds: rounds of the fit.
        of: name of its folder in the store.
    """

    name: str
    state: str
    seconds: float | None = None
    size: int = 0
    images: int = 0
    rounds: int = 0
    of: str = ""


class Timing(Callback):
    """Stops every fit after a few rounds, and estimates the time of the whole fit."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset counts and times."""
        self.total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self.validations = (trainer.max_epochs or 1) // (trainer.check_val_every_n_epoch or 1)
        self.done = 0
        self.validating: list[float] = []
        self.began = self.from_here = now_on_device()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start timing validation, which does not happen in every round."""
        self.validation_began = now_on_device()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exclude validation from the time of the rounds."""
        self.validating.append(now_on_device() - self.validation_began)
        self.from_here += self.validating[-1]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Update the time of a round; stop after ``WARM + ROUNDS`` rounds or ``PATIENCE`` seconds."""
        self.done += 1
        now, warm = now_on_device(), min(WARM, self.total - 1)
        timed = self.done - warm if self.done > warm else self.done
        self.of_a_round = (now - self.from_here) / timed
        if self.done == warm:
            self.from_here = now
        if self.done >= warm + ROUNDS or now - self.began > PATIENCE:
            trainer.should_stop = True

    def seconds(self, rounds: int) -> float:
        """Estimated seconds of this many rounds, with their share of the validations."""
        each = sum(self.validating) / len(self.validating) if self.validating else 0.0
        return rounds * self.of_a_round + each * self.validations * rounds / self.total


class Planner:
    """Replaces :func:`~kd_lightning.engine.fit.fit`: reads stored fits, and times those that are missing.

    Args:
        kept: the store of the runs.
        bench: context of a run, with an :class:`Overlay` of ``kept`` as its store.
        promised: names of the folders that earlier jobs of a sweep will have made.
    """

    def __init__(self, kept: Store, bench: RunContext, promised: set[str]) -> None:
        self.kept, self.bench, self.promised = kept, bench, promised
        self.steps: list[Step] = []
        self.fits: dict[str, FitResult] = {}
        self.door: Planned | None = None
        self.most = sys.maxsize
        self.timing = Timing()
        bench.callbacks.append(self.timing)

    def fit(
        self,
        training: Training,
        bench: RunContext,
        *,
        phase: str,
        teacher: Teacher | None = None,
        teacher_key: str = "none",
        source_teacher: Teacher | None = None,
        source_teacher_key: str | None = None,
    ) -> FitResult:
        """Return the stored fit, or run a few rounds of it and return those with the report of a full fit."""
        config = fit_config(training, bench, teacher_key, source_teacher_key)
        folder = bench.store.path("fit", config)
        if folder.name in self.fits:  # a stage that is a control as well
            return self.fits[folder.name]
        how: dict[str, Any] = {"phase": f"try {phase}", "teacher": teacher, "teacher_key": teacher_key}
        how |= {"source_teacher": source_teacher, "source_teacher_key": source_teacher_key}
        if (folder / "artifact.json").is_file() and not self.kept.anew(students=phase == "student"):
            fitted = self.fits[folder.name] = fit(training, bench, **how)
            state = PROMISED if folder.name in self.promised else KEPT
            self.steps.append(Step(phase, state, size=size_of(folder.resolve()), rounds=fitted.report["rounds"]))
            return fitted
        short, more, asked_before, prepares = self._shortened(
            training, source_teacher or teacher, source_teacher_key or teacher_key, phase
        )
        unpaid = 0 if self.door is None else len(self.door.unpaid)
        fitted = fit(short, bench, **how)
        if fitted.folder != folder:
            os.replace(fitted.folder, folder)
        if prepares is not None:
            self._fill(prepares, more, training, short)
        rounds = round(self.timing.total * more)
        part = rounds / max(1, fitted.report["rounds"])
        report = dict(fitted.report)
        for key in ("student_updates", "images_synthesised"):
            report[key] = round(report[key] * part)
        images = min(round((report["teacher_images"] - asked_before) * part), self.most)
        report["teacher_images"] = images + (prepares.images if prepares else asked_before)
        done = self._done(folder.name)
        step = Step(phase, MISSING, size=size_of(folder), rounds=rounds, of=folder.name)
        step.seconds = self.timing.seconds(max(0, rounds - done))
        if self.door is not None:
            images = min(round((len(self.door.unpaid) - unpaid) * part), images)
        step.images = round(images * max(0, rounds - done) / max(1, rounds))
        if done:
            step.state = f"begun, {done:,} rounds done"
        self._add(step)
        self.fits[folder.name] = dataclasses.replace(fitted, folder=folder, key=digest(config), report=report)
        return self.fits[folder.name]

    def _shortened(
        self, training: Training, teacher: Teacher | None, teacher_key: str, phase: str
    ) -> tuple[Training, float, int, Step | None]:
        """Reduce a training to one device and, if its source first makes a pool, to a small pool.

        Returns:
            The reduced training, the factor by which an epoch of the full training is longer, the number of images
            that the source asks the teacher about, and the source's own step.
        """
        trainer = training.trainer.without("strategy", "num_nodes").replace(devices=1)
        short = training.derive(trainer=trainer)
        source = training.source.build()
        context = self._context(training, teacher, teacher_key)
        if getattr(source, "quick", False):
            context.store = self.bench.store
        before = 0 if teacher is None else teacher.asked
        unpaid = 0 if self.door is None else len(self.door.unpaid)
        try:
            loader = source.prepare(context)
        except Missing as missing:
            name = str(missing)
            kind = name.partition("-")[0]
        else:
            counted = 0
            if teacher is not None:  # what an earlier run paid for is counted, too
                counted, teacher.asked = teacher.asked - before, before
            # the same images in every epoch: none is asked about twice
            same = isinstance(loader, TensorLoader) and not loader.augment and self.door is not None
            self.most = len(loader.images) if same else training.method.get("questions") or sys.maxsize
            if self.door is not None and (new := len(self.door.unpaid) - unpaid):
                self.steps.append(Step(f"{phase}'s answers", MISSING, seconds=new * self.door.seconds, images=new))
            return short, 1.0, counted, None
        if isinstance(source, Synthetic):
            small, more = shortened(training.source, source, context)
            self._drawn(phase, name, outlook(source, context), context)
            return short.derive(source=small), more, 0, None
        node = training.source
        many = "pairs" if "pairs" in node else "images"
        if kind != "pool" or many not in node:
            raise UserError(f"plan: {node.target} makes {kind}, and no plan knows how long that takes")
        number = node[many] or len(context.real(labels=False))
        each = tried = 0  # queries per image; none for a generator
        few = max([node.get(key) or 0 for key in ("inverted", "impressions", "batch_size")])
        if "steps" in node:
            each, tried = node["steps"] + 1, min(node["steps"], ROUNDS) + 1
            node = node.replace(steps=tried - 1)
        else:
            few = max(few, TRIED)
        few = min(number, few)
        step = Step(f"{phase}'s {kind}", MISSING, images=number * each, of=name)
        self.steps.append(step)
        return short.derive(source=node.replace(**{many: few})), number / few, few * tried, step

    def _drawn(self, phase: str, missing: str, expected: Outlook, context: Context) -> None:
        """Add the steps of a conditional generator's pool and of the teacher's answers to it."""
        answers = missing
        if missing.startswith("pool"):
            answers = context.store.path("labels", answers_config(context, missing)).name
            self._add(Step(f"{phase}'s pool", MISSING, expected.drawing, expected.size, of=missing))
        step = Step(
            f"{phase}'s answers", MISSING, expected.answering, expected.answers_size, expected.asked, of=answers
        )
        if self.door is not None and step.images:
            step.images = self.door.unseen(missing, step.images)
            step.seconds, step.size = step.images * self.door.seconds, 0
            self.steps.append(step)
        elif step.images:
            self._add(step)

    def _add(self, step: Step) -> None:
        self._unless_promised(step)
        self.steps.append(step)

    def _fill(self, step: Step, more: float, training: Training, short: Training) -> None:
        store = self.bench.store
        assert isinstance(store, Overlay)
        longer = training.source.get("steps", 1) / short.source.get("steps", 1)
        step.seconds, step.size = store.seconds["pool"] * more * longer, round(store.sizes["pool"] * more)
        self._unless_promised(step)

    def _context(self, training: Training, teacher: Teacher | None, teacher_key: str) -> Context:
        return Context(
            dataset=self.bench.dataset,
            teacher=teacher,
            store=Probe(self.bench.store.root),
            keys={"data": self.bench.data_key, "teacher": teacher_key},
            mean=list(training.data.mean),
            std=list(training.data.std),
            device=training.device,
            needs=set(training.method.requirements()),
        )

    def _done(self, name: str) -> int:
        """Rounds done by an interrupted fit; 0 if there is none."""
        file = self.kept.root / f"{name}.unfinished" / "last.ckpt"
        if self.kept.anew() or not file.is_file():
            return 0
        loops = read_checkpoint(file)["loops"]
        return int(loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"])

    def _unless_promised(self, step: Step) -> None:
        if step.of in self.promised:
            step.state, step.seconds, step.images = PROMISED, None, 0
        self.promised.add(step.of)
