"""Images that the teacher was asked about once: counted, kept, and never asked again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kd_lightning.artifacts import digest, writing
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.data.sources.context import Context
from kd_lightning.errors import ConfigError
from kd_lightning.inference import predict
from kd_lightning.teacher.query import QueryTeacher

CHUNK = 500
"""Answers are stored so many at a time."""


class Queried:
    """``images`` training images, answered by the teacher and stored; training sees the answers, not the teacher.

    Args:
        images: how many of the training images are asked about, a random choice; None for all.
        batch_size: images per batch and rank.
        augment: applied to each batch; the answer stays that of the image as it was asked about.
        seed: of the choice.
    """

    offers = frozenset({"source.images", "source.labels", "source.answers"})

    def __init__(
        self, *, images: int | None, batch_size: int, augment: Sequence[Augmentation] = (), seed: int = 0
    ) -> None:
        self.images, self.batch_size, self.augment, self.seed = images, batch_size, augment, seed

    def prepare(self, context: Context) -> TensorLoader:
        """Ask, or read what was answered before.

        Raises:
            BudgetExceeded: ``teacher.budget`` is smaller than the number of images.
            ConfigError: there is no teacher.
        """
        if context.teacher is None:
            raise ConfigError("source=queried asks a teacher, but teacher=none: choose one with teacher=NAME")
        split = context.real()
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))
        index = order[: self.images].sort().values
        chunks = dict(enumerate(index.split(CHUNK)))
        spent = context.teacher.asked
        if isinstance(context.teacher, QueryTeacher):
            context.teacher.require(len(index))

        def ask(folder: Path) -> None:
            for i, chunk in chunks.items():  # what was paid for before a kill is not paid again
                if not _part(folder, i).is_file():
                    answers = predict(context.teacher, split.images[chunk], batch_size=CHUNK, device=context.device)
                    with writing(folder):
                        save_file({"answers": answers}, folder / "part")
                        (folder / "part").replace(_part(folder, i))

        config = {**context.keys, "index": digest(index.tolist()), "version": 1}
        folder = context.store.obtain("answers", config, ask)
        stored = torch.cat([load_file(_part(folder, i))["answers"] for i in chunks])
        context.teacher.asked = spent + len(index)  # also where an earlier run paid
        context.notes["queries"] = len(index)
        return context.serve(
            split.images[index],
            split.labels[index],
            answers=stored,
            batch_size=self.batch_size,
            augment=self.augment,
        )


def _part(folder: Path, number: int) -> Path:
    return folder / f"answers_{number:05d}.safetensors"
