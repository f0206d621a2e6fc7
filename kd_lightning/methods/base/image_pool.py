"""Base of the methods that synthesise images in batches and train the student on all images so far."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd_lightning.core.image_buffer import ImageBuffer
from kd_lightning.data.loader import Augmentation
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Distiller, LastBatch, OptimizerFactory, SchedulerFactory

ANSWERED = 512
"""Images that the teacher answers at once."""


class ImagePool(Distiller):
    """A pool of synthetic images, and the training of the student on it.

    A round of the paper, which makes a batch of images and then trains the student for ``kd_steps``, is split into
    several training batches. The method itself defines how images are made, and by :meth:`distils` the order of
    the two. The student's optimiser is the first of ``configure_optimizers``.

    Args:
        optimizer: makes the student's optimiser.
        scheduler: schedule of its learning rate, stepped once an epoch.
        kd_steps: student steps a round of the paper.
        per_batch: optimiser steps in one training batch, a divisor of ``kd_steps``.
        kd_batch_size: images of one student step, per rank.
        temperature: T of the student's KL.
        augment: augmentations of the pool's images for the student. Without them the teacher answers each image once.
        **base: see :class:`Distiller`.

    Raises:
        ValueError: ``per_batch`` does not divide ``kd_steps``.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        kd_steps: int,
        per_batch: int,
        kd_batch_size: int,
        temperature: float,
        scheduler: SchedulerFactory | None = None,
        augment: Sequence[Augmentation] = (),
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if per_batch < 1 or kd_steps % per_batch:
            raise ValueError(f"per_batch must divide kd_steps={kd_steps}, got {per_batch}")
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.kd_steps, self.per_batch, self.kd_batch_size = kd_steps, per_batch, kd_batch_size
        self.temperature, self.augment = temperature, tuple(augment)
        self.pool, self.answers = ImageBuffer(), ImageBuffer(dtype=torch.float32)

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """A teacher with batch norm, its gradients, and no data."""
        return {"teacher.gradients", "teacher.batch_norm", "source.free", "task.classification"}

    @abstractmethod
    def distils(self, n: int) -> bool:
        """Whether training batch ``n`` of the fit trains the student."""

    def student_updates_per_round(self) -> int:
        """Student steps in a training batch that distils."""
        return self.per_batch

    def student_updates(self, rounds: int) -> int:
        """Student steps in the first ``rounds`` training batches."""
        return self.per_batch * sum(map(self.distils, range(rounds)))

    def configure_optimizers(self) -> Any:
        """The student's optimiser and schedule."""
        return self.scheduled((self.make_optimizer(self.student.parameters()), self.make_scheduler))

    def view(self, x: Tensor) -> Tensor:
        """Augment images (N, C, H, W), each independently."""
        for augmentation in self.augment:
            x = augmentation(x, self.rng)
        return x

    @torch.no_grad()
    def lesson(self, n: int) -> tuple[Tensor, Tensor]:
        """``n`` images (n, C, H, W) of the pool as the student sees them, and the teacher's answers (n, K)."""
        assert self.teacher is not None
        if self.augment:
            x = self.view(self.pool.sample(n, self.rng))
            return x, self.teacher(x)
        while (known := len(self.answers)) < len(self.pool):
            fresh = torch.arange(known, min(known + ANSWERED, len(self.pool)), device=self.device)
            self.answers.add(self.teacher(self.pool.at(fresh)).float())
        places = torch.randint(len(self.pool), (n,), generator=self.rng, device=self.device)
        return self.pool.at(places), self.answers.at(places)

    def draw(self, n: int) -> Tensor:
        """``n`` images (n, C, H, W) as the student sees them."""
        return self.lesson(n)[0]

    def distil(self) -> Tensor:
        """``per_batch`` student steps on the pool; returns the last loss."""
        opt_s = self.opts()[0]
        for _ in range(self.per_batch):
            x, t = self.lesson(self.kd_batch_size)
            loss = kl(self.student(x), t, temperature=self.temperature)
            self.update(opt_s, loss)
        return loss

    def rank_state(self) -> dict[str, Any]:
        """The pool, the answers to it, and the images last shown to callbacks."""
        state: dict[str, Any] = {name: getattr(self, name).save(self.beside(name)) for name in ("pool", "answers")}
        return state if self.seen is None else state | {"seen": tuple(self.seen)}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        for name in ("pool", "answers"):  # the answers are not in files of earlier versions
            if name in state:
                getattr(self, name).load(self.beside(name), state[name], self.device)
        if "seen" in state:
            self.seen = LastBatch(*(tensor.to(self.device) for tensor in state["seen"]))
