"""A student that learns from all images made so far, while a generator is fitted to one batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.core.image_buffer import Memory
from kd_lightning.data.loader import Augmentation
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Seen
from kd_lightning.methods.base.generator_pair import Generative


class Pooled(Generative):
    """What model inversion by a generator shares: a pool of images, and how the student learns from it.

    A round of the paper, which makes ``batch_size`` images and then trains the student for ``kd_steps``, is cut
    into several training batches.

    Args:
        kd_steps: student steps a round of the paper.
        per_batch: steps of whichever network in one training batch, a divisor of ``kd_steps``.
        kd_batch_size: images of one student step, per rank.
        temperature: T of the student's KL.
        augment: applied to what the student sees of the pool and to what the teacher sees of new images.
        **generative: see :class:`Generative`.
    """

    def __init__(
        self,
        *,
        kd_steps: int = 400,
        per_batch: int = 10,
        kd_batch_size: int = 256,
        temperature: float = 20.0,
        augment: Sequence[Augmentation] = (),
        **generative: Any,
    ) -> None:
        super().__init__(**generative)
        if kd_steps % per_batch:
            raise ValueError(f"per_batch must divide kd_steps={kd_steps}, got {per_batch}")
        self.kd_steps, self.per_batch, self.kd_batch_size = kd_steps, per_batch, kd_batch_size
        self.temperature, self.augment = temperature, tuple(augment)
        self.pool = Memory()

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """A teacher with batch norm, its gradients, and no data."""
        return super().needs(**settings) | {"teacher.batch_norm"}

    def student_updates_per_round(self) -> int:
        """In a training batch that distils."""
        return self.per_batch

    def view(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) under the paper's augmentation, every image under its own."""
        for augmentation in self.augment:
            x = augmentation(x, self.rng)
        return x

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """``n`` images (n, C, H, W) as the student is shown them: from the pool."""
        return self.view(self.pool.sample(n, self.rng))

    def distil(self) -> Tensor:
        """``per_batch`` student steps on the pool; returns the last loss."""
        assert self.teacher is not None
        opt_s = self.opts()[0]
        for _ in range(self.per_batch):
            with torch.no_grad():
                x = self.draw(self.kd_batch_size)
                t = self.teacher(x)
            loss = kl(self.student(x), t, temperature=self.temperature)
            self.update(opt_s, loss)
        return loss

    def rank_state(self) -> dict[str, Any]:
        """The pool, and what callbacks look at."""
        state: dict[str, Any] = {"pool": self.pool.save(self.beside("pool"))}
        return state if self.seen is None else state | {"seen": tuple(self.seen)}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take both back."""
        self.pool.load(self.beside("pool"), state["pool"], self.device)
        if "seen" in state:
            self.seen = Seen(*(tensor.to(self.device) for tensor in state["seen"]))

    def beside(self, name: str) -> Path:
        """This rank's file for rows that checkpoints are too small for."""
        return Path(self.trainer.default_root_dir) / f"{name}_{self.global_rank}.bin"


class Best:
    """The batch with the lowest loss so far, chosen on the device without asking it.

    Args:
        kept: loss and tensors of an earlier ``kept``.
    """

    def __init__(self, *kept: Tensor) -> None:
        self.kept = kept

    def offer(self, loss: Tensor, *tensors: Tensor) -> None:
        """Keep loss and tensors if the loss is lower than that of those kept."""
        new = tuple(tensor.detach() for tensor in (loss, *tensors))
        if self.kept:
            better = new[0] < self.kept[0]
            new = tuple(torch.where(better, a, b) for a, b in zip(new, self.kept, strict=True))
        self.kept = new
