"""Images that the teacher was asked about once: counted, kept, and never asked again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kd_lightning.artifacts import digest
from kd_lightning.data.loader import Augmentation, TensorLoader
from kd_lightning.data.sources.context import Context
from kd_lightning.errors import ConfigError
from kd_lightning.inference import predict


class Queried:
    """``images`` training images, answered by the teacher and stored; training sees the answers, not the teacher.

    Args:
        images: how many of the training images are asked about, a random choice that ``source.seed`` fixes;
            None for all.
        batch_size: images per batch and rank.
        augment: applied to each batch; the answer stays that of the image as it was asked about.
    """

    offers = frozenset({"source.images", "source.labels", "source.answers"})

    def __init__(self, *, images: int | None, batch_size: int, augment: Sequence[Augmentation] = ()) -> None:
        self.images, self.batch_size, self.augment = images, batch_size, augment

    def prepare(self, context: Context) -> TensorLoader:
        """Ask, or read what was answered before.

        Raises:
            BudgetExceeded: ``teacher.budget`` is smaller than the number of images.
            ConfigError: there is no teacher.
        """
        if context.teacher is None:
            raise ConfigError("source=queried asks a teacher, but teacher=none: choose one with teacher=NAME")
        split = context.real()
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(context.seed))
        index = order[: self.images].sort().values

        def ask(folder: Path) -> None:
            answers = predict(context.teacher, split.images[index], batch_size=250, device=context.device)
            save_file({"answers": answers.contiguous(), "index": index}, folder / "answers.safetensors")

        config = {**context.keys, "index": digest(index.tolist()), "version": 1}
        stored = load_file(context.store.obtain("answers", config, ask) / "answers.safetensors")
        context.notes["queries"] = len(index)
        return TensorLoader(
            split.images[index],
            split.labels[index],
            answers=stored["answers"],
            batch_size=self.batch_size,
            shuffle=True,
            augment=self.augment,
            seed=context.order_seed,
            rank=context.rank,
            world=context.world,
            drop_last=len(index) >= self.batch_size * context.world,
            device=context.device,
        )
