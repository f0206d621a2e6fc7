"""A student's fit in slices of time: it stops as at Ctrl-C, says how good it is, and the same command goes on."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import lightning as L

from kd_lightning.core.inference import predict
from kd_lightning.core.tasks import evaluate, kept
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.structured_images import priors
from kd_lightning.errors import UserError
from kd_lightning.store.files import writing

if TYPE_CHECKING:
    from kd_lightning.config.composition import Data
    from kd_lightning.methods.base.distiller import Distiller

SLICE = "KD_SLICE"
"""Variable with the seconds of a slice; ``sweep=race`` sets it."""
SLICES = "slices.json"
HELD_OUT, HELD_OUT_SEED = 1000, 20_231
"""Number of images to agree on where there are none for validation, and their seed, which no source draws from."""


@dataclass
class Slice:
    """One slice of the student's fit; its clock starts with the slice, so that making images counts.

    Args:
        seconds: of the slice.
        folder: of the run; ``slices.json`` there gets a line for each slice.
        dataset: whose validation images the student is judged on.
        mean: of the data per channel.
        std: likewise.
    """

    seconds: float
    folder: Path
    dataset: Dataset
    mean: list[float]
    std: list[float]
    started: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether the time has passed."""
        return time.monotonic() - self.started >= self.seconds

    def leave(self, trainer: L.Trainer, *, ended: bool) -> None:
        """Append what the student reached to ``slices.json``, on the first rank.

        Raises:
            UserError: there is nothing to judge it by.
        """
        if not trainer.is_global_zero:
            return
        rounds = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        score, judged_by = self._score(cast("Distiller", trainer.lightning_module))
        file = self.folder / SLICES
        said = json.loads(file.read_text()) if file.is_file() else []
        said.append(
            {
                "round": rounds,
                "seconds": time.monotonic() - self.started,
                "score": score,
                "higher_is_better": self.dataset.task.higher_is_better,
                "judged_by": judged_by,
                "ended": ended,
            }
        )
        with writing(file):
            file.write_text(json.dumps(said))

    def _score(self, method: Distiller) -> tuple[float, str]:
        task, val, teacher = self.dataset.task, self.dataset.val, getattr(method.teacher, "net", None)
        answers = partial(predict, keep=kept(task), device=str(method.device))
        if val is not None and val.labelled:
            reached = evaluate(task, answers(method.student, val.images), val.labels, None)[task.headline]
            judged_by = f"{task.headline} on validation images"
        elif teacher is not None:
            images = priors(HELD_OUT, self.dataset.image_shape, mean=self.mean, std=self.std, seed=HELD_OUT_SEED)
            reached = evaluate(task, answers(method.student, images), None, answers(teacher, images))["agreement"]
            judged_by = f"agreement with the teacher on {HELD_OUT:,} image priors"
        else:
            raise UserError(
                f"sweep=race: data={self.dataset.name} has no labelled validation images and the teacher only shows "
                "answers, so nothing tells which method is better; give validation images, or a white teacher"
            )
        assert reached is not None
        return reached, judged_by


def slice_of(folder: Path, dataset: Dataset, data: Data) -> Slice | None:
    """The slice that the environment asks for; None where it asks for none."""
    seconds = os.environ.get(SLICE)
    return Slice(float(seconds), folder, dataset, list(data.mean), list(data.std)) if seconds else None
