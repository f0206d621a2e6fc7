"""Check for a collapsed generator during a fit, with grids of the images that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from kd_lightning.core.collapse import Collapsed
from kd_lightning.core.notices import keep, notice
from kd_lightning.core.tasks import Regression, Task
from kd_lightning.core.user_code import code_of
from kd_lightning.data.batches import Batch
from kd_lightning.distributed import decisions
from kd_lightning.engine.generator_health import class_counts, generator_health, least_entropy
from kd_lightning.engine.restart import REMEDY
from kd_lightning.methods.base.distiller import Distiller, LastBatch
from kd_lightning.methods.base.protocols import Teacher
from kd_lightning.sources.pool import checked
from kd_lightning.teachers.white_box import FrozenTeacher
from kd_lightning.tracking.backends import Dashboards
from kd_lightning.tracking.captioned_grid import captioned
from kd_lightning.tracking.fonts import legible
from kd_lightning.tracking.image_grids import bars, save, to_uint8

BINS = 24
"""Number of bins in which the answers of a regression teacher are counted."""


class WatchGenerator(Callback):
    """Detects a collapsed generator during a fit, and saves grids of the images it generates.

    A generator is healthy if the teacher predicts many classes (entropy of its batch-mean prediction) and the images
    differ from each other; for regression only the second is checked. After ``patience`` checks in a row with an
    entropy below :func:`~kd_lightning.engine.generator_health.least_entropy`, or with nearly identical images, a
    warning is given once. With the method's ``on_collapse="restart"`` training stops instead, and ``collapsed`` holds
    the reason. In segmentation every pixel counts as one prediction.

    Args:
        folder: images are written to ``samples/`` in it.
        classes: names of the teacher's classes.
        boards: dashboards that get the images, too.
        task: what the teacher's answers mean; None for classification.
        every: rounds between two checks.
        patience: failed checks in a row, each of different images, before the warning.
        grids: approximate number of grids written over the fit.
        synthetic: whether the training batches are generated images; the last one of each epoch is then checked.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str] = (),
        boards: Dashboards | None = None,
        *,
        task: Task | None = None,
        every: int = 20,
        patience: int = 10,
        grids: int = 10,
        synthetic: bool = False,
    ) -> None:
        self.folder, self.classes, self.boards = folder, classes, boards or Dashboards()
        self.numbers = task if isinstance(task, Regression) else None
        self.every, self.patience, self.grids, self.synthetic = every, patience, grids, synthetic
        self.counts: list[int] = []
        self.bad = 0
        self.judged: LastBatch | None = None
        self.new = True
        self.warned, self.said = False, ""
        self.collapsed: Collapsed | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """After a resume, skip the images of the checkpoint if they were checked before it was written."""
        assert isinstance(pl_module, Distiller)
        if self.judged is None and not self.new:
            self.judged = pl_module.seen

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the images that the method generated, or the training batch if that is generated."""
        assert isinstance(pl_module, Distiller)
        self.new = pl_module.seen is not self.judged
        if self.synthetic and batch_idx + 1 == trainer.num_training_batches:
            pl_module.seen = with_answers(batch, pl_module.teacher)
        elif self.synthetic or batch_idx % self.every:
            return
        if pl_module.seen is None or pl_module.seen is self.judged or len(pl_module.seen.images) < 2:
            return
        self.judged, self.new = pl_module.seen, False
        if (generator := getattr(pl_module, "generator", None)) is not None and code_of(type(generator)) is not None:
            checked(pl_module.seen.images, generator)
        answers = pl_module.seen.teacher
        counts = self._counted(answers).tolist()
        self.counts = [a + b for a, b in zip(self.counts or [0] * len(counts), counts, strict=True)]
        health = generator_health(*pl_module.seen, numbers=self.numbers)
        pl_module.report({f"generated/{k}": v for k, v in health.items()})
        collapsed = self._judge(health, pl_module, least_entropy(answers))
        if pl_module.on_collapse == "restart":
            self.collapsed = decisions.decided(lambda: collapsed)
            trainer.should_stop = trainer.should_stop or self.collapsed is not None
        elif collapsed and not self.warned:
            self.warned = True
            self.said = f"{collapsed}. The student will not learn from this. {collapsed.remedy}"
            notice(self.said)

    def _judge(self, health: dict[str, float], method: Distiller, least: float = 0.5) -> Collapsed | None:
        bad = health.get("entropy", 1.0) < least or health["spread"] < 0.02
        self.bad = self.bad + 1 if bad else 0
        if self.bad < self.patience:
            return None
        mean = "" if self.numbers else f"entropy of the batch-mean prediction is {health['entropy']:.2f} of ln C, "
        words = f"{mean}pixel spread {health['spread']:.3f}"
        return Collapsed(method.rounds_done, words, REMEDY.format(lr=method.generator_lr))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last images with the teacher's class and confidence, and a bar chart of the class counts."""
        assert isinstance(pl_module, Distiller)
        epochs = trainer.max_epochs or 1
        step = max(1, epochs // self.grids)
        last = trainer.current_epoch + 1 == epochs or trainer.should_stop
        if pl_module.seen is not None and (last or trainer.current_epoch % step == 0):
            self._draw(pl_module, f"{trainer.current_epoch + 1:04d}")
            self.counts = []

    def _counted(self, answers: torch.Tensor) -> torch.Tensor:
        """How often the teacher predicted each class (K,), or a number in each of ``BINS`` parts of the range."""
        if self.numbers is None:
            return class_counts(answers)
        places = self.numbers.normalise(self.numbers.numbers(answers))
        return torch.bincount((places * BINS).long().clamp(max=BINS - 1), minlength=BINS)

    def _sorted(self, answers: torch.Tensor) -> torch.Tensor:
        """The order of images by the teacher's class, within a class the surest first; numbers by their size."""
        if self.numbers is not None:
            return self.numbers.numbers(answers).argsort()
        if answers.dim() == 4:
            return torch.stack([class_counts(each[None]) for each in answers]).argmax(1).argsort(stable=True)
        confidence, label = answers.float().softmax(1).max(1)
        surest = confidence.argsort(descending=True, stable=True)
        return surest[label[surest].argsort(stable=True)]

    def _worded(self, answers: torch.Tensor, classes: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
        """A caption for each image, and a name for each class, by default the data's, or bin."""
        if self.numbers is None:
            names = list(self.classes if classes is None else classes) or [str(i) for i in range(answers.shape[1])]
            if answers.dim() == 4:  # an image has many classes: its commonest one, and how much of it that is
                shares = torch.stack([class_counts(each[None]) for each in answers]) / answers[0, 0].numel()
                confidence, label = shares.max(1)
            else:
                confidence, label = answers.float().softmax(1).max(1)
            pairs = zip(label.tolist(), confidence.tolist(), strict=True)
            return [f"{names[c]} ({p:.2f})" for c, p in pairs], names
        captions = [f"{number:.4g} {self.numbers.unit}" for number in self.numbers.numbers(answers).tolist()]
        return captions, [f"{edge:.4g}" for edge in self.numbers.denormalise(torch.arange(BINS) / BINS).tolist()]

    @rank_zero_only
    def _draw(self, method: Distiller, number: str) -> None:
        assert method.seen is not None
        order = self._sorted(method.seen.teacher[:100])
        images = to_uint8(method.seen.images[:100][order])
        captions, names = self._worded(method.seen.teacher[:100][order])
        drawn, _ = self._worded(method.seen.teacher[:100][order], legible(self.classes))
        save(
            captioned(images, drawn, columns=10 if len(images) % 10 == 0 else 8),
            self.folder / "samples" / f"generated_{number}.png",
        )
        self.boards.images("generated", images, captions, method.rounds_done)
        if not self.counts:
            return
        counts, total = torch.tensor(self.counts), sum(self.counts)
        method.report({"generated/rarest": min(self.counts) / total, "generated/commonest": max(self.counts) / total})
        by = "class" if self.numbers is None else f"number ({self.numbers.unit}, from ...)"
        what = "pixels" if method.seen.teacher.dim() == 4 else "images"
        title = f"{total:,} generated {what} by the teacher's {by}, up to round {method.rounds_done + 1:,}"
        picture = bars(counts, names, title)
        save(picture, self.folder / "samples" / f"classes_{number}.png")
        self.boards.picture("classes", picture, method.rounds_done)
        self.boards.class_counts("generated/classes", counts, method.rounds_done)

    def state_dict(self) -> dict[str, Any]:
        """The counts of checks and classes, so that a resumed fit does not warn again."""
        return {"bad": self.bad, "warned": self.warned, "said": self.said, "counts": self.counts, "new": self.new}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts."""
        self.bad, self.warned, self.counts, self.new = (state_dict[k] for k in ("bad", "warned", "counts", "new"))
        self.said = state_dict.get("said", "")
        if self.said:
            keep(self.said)


@torch.no_grad()
def with_answers(batch: Batch, teacher: Teacher | None) -> LastBatch | None:
    """A batch with the teacher's answers: those stored with it, else those of a white-box teacher, else None."""
    if batch.t is not None:
        return LastBatch(batch.x, batch.t)
    return LastBatch(batch.x, teacher.net(batch.x)) if isinstance(teacher, FrozenTeacher) else None
