"""Adaptive DeepInversion: dreaming to distill (Yin et al., CVPR 2020, arXiv 1912.08795).

DeepInversion's images are what the teacher expects of a class, and soon hold nothing that the student does not
know. Here they are made while the student learns: a competition term asks for pixels on which the two disagree.
Every new batch joins a pool, on which the student imitates the teacher before the next batch is made.

Deviations (paper / authors' code / here):
    * Student: in training / a fixed one, the training was never released / in training; the maintainers' answers:
      from scratch, one new batch for every 50 steps, T=3.
    * Competition: 1 - JS / JS of the reverse divergences, clamped, which reaches 1.61 and is cut at 1: no gradient
      where the two disagree most / JS over ln 2, between 0 and 1; ``legacy_js=True`` for the code's.
    * Student while pixels are optimised: - / evaluation mode / likewise; gradients cross it and change nothing.
    * Pool: - / - / each batch of the student is drawn from all images so far, with replacement.
    * Pixels: see ``DeepInversion``, whose losses these are; optimised in full precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kd_lightning.core.image_buffer import Memory
from kd_lightning.data.loader import Augmentation
from kd_lightning.losses.adversarial import jensen_shannon
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory, Seen
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.deep_inversion import inversion_losses, jittered, keep_in_range


class AdaptiveDeepInversion(Distiller):
    """One round is one action of ``per_batch`` steps: on the pixels of a new batch or, once it is done, of the student.

    Args:
        image: shape (C, H, W) of an image.
        optimizer: makes the student's optimiser.
        scheduler: schedule of its learning rate, stepped once an epoch.
        inverted: images optimised together, per rank.
        steps: of Adam for each such batch.
        lr: its learning rate, on standardised pixels.
        bn: weight of the batch-norm statistics (alpha_f).
        tv: weight of the total variation (alpha_tv); the norm grows with the square root of ``inverted``.
        l2: weight of the norm (alpha_l2).
        compete: weight of the competition (alpha_c).
        clip: whether pixels are kept in the range of images at every step.
        jitter: largest shift in pixels.
        flip: mirror in every second step.
        kd_steps: of the student for each new batch.
        kd_batch_size: images in each of them, per rank.
        temperature: T of the student's loss.
        per_batch: steps of a round; divides ``steps`` and ``kd_steps``.
        augment: applied to each of the student's batches.
        legacy_js: the code's competition, see the deviations above.
        **base: see :class:`Distiller`.
    """

    def __init__(
        self,
        *,
        image: Sequence[int],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        inverted: int = 256,
        steps: int = 2000,
        lr: float = 0.05,
        bn: float = 10.0,
        tv: float = 2.5e-5,
        l2: float = 3e-8,
        compete: float = 10.0,
        clip: bool = False,
        jitter: int = 2,
        flip: bool = True,
        kd_steps: int = 50,
        kd_batch_size: int = 256,
        temperature: float = 3.0,
        per_batch: int = 50,
        augment: Sequence[Augmentation] = (),
        legacy_js: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if per_batch < 1 or steps % per_batch or kd_steps % per_batch:
            raise ValueError(f"per_batch={per_batch} must divide both steps={steps} and kd_steps={kd_steps}")
        self.image, self.make_optimizer, self.make_scheduler = tuple(image), optimizer, scheduler
        self.inverted, self.steps, self.lr = inverted, steps, lr
        self.bn, self.tv, self.l2, self.compete = bn, tv, l2, compete
        self.clip, self.jitter, self.flip, self.augment = clip, jitter, flip, tuple(augment)
        self.kd_steps, self.kd_batch_size, self.temperature = kd_steps, kd_batch_size, temperature
        self.per_batch, self.legacy_js = per_batch, legacy_js
        self.pixels = torch.empty(0, *self.image)
        self.adam: torch.optim.Adam | None = None
        self.pool = Memory()

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """A teacher with batch norm, its gradients, and no data."""
        return {"teacher.gradients", "teacher.batch_norm", "source.free", "task.classification"}

    def student_updates_per_round(self) -> int:
        """In a round that distils."""
        return self.per_batch

    def student_updates(self, rounds: int) -> int:
        """Of the rounds that distil."""
        return self.per_batch * sum(n % self.rounds_an_epoch() * self.per_batch >= self.steps for n in range(rounds))

    def rounds_an_epoch(self) -> int:
        """From one new batch to the next."""
        return (self.steps + self.kd_steps) // self.per_batch

    def configure_optimizers(self) -> Any:
        """The student's; a batch of pixels has its own."""
        return self.scheduled((self.make_optimizer(self.student.parameters()), self.make_scheduler))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """What comes next: pixels, their way into the pool, or the student."""
        place = self.rounds_done % self.rounds_an_epoch() * self.per_batch
        if place == 0:
            self.begin(torch.randn(self.inverted, *self.image, device=self.device, generator=self.rng))
        if place < self.steps:
            self.synthesise()
        if place == self.steps - self.per_batch:
            self.commit()
        if place >= self.steps:
            self.distil()

    def begin(self, noise: Tensor) -> None:
        """A new batch of standardised pixels, and its optimiser."""
        self.pixels = noise.requires_grad_()
        self.adam = torch.optim.Adam([self.pixels], lr=self.lr)

    def synthesise(self) -> None:
        """``per_batch`` steps on the pixels; neither network changes."""
        assert self.adam is not None
        net = cast(Normalized, self.white.net)
        # every class equally often, over the whole pool
        y = torch.arange(self.images_made, self.images_made + self.inverted, device=self.device) % self.task.num_classes
        draws: dict[str, Any] = {"device": self.device, "generator": self.rng}
        shifts = torch.randint(-self.jitter, self.jitter + 1, (self.per_batch, 2), **draws).tolist()
        mirrored = (torch.rand(self.per_batch, **draws) < 0.5).tolist()
        self.student.eval()
        with self.frozen(self.student), torch.autocast(self.device.type, enabled=False):
            for shift, mirror in zip(shifts, mirrored, strict=True):
                v = jittered(self.pixels, shift, mirrored=self.flip and mirror)
                t, losses = inversion_losses(net, v, y, bn=self.bn, tv=self.tv, l2=self.l2)
                if self.compete:
                    losses["compete"] = self.compete * self.competition(self.student(v * net.std + net.mean), t)
                (self.pixels.grad,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), self.pixels)
                self.adam.step()
                if self.clip:
                    keep_in_range(self.pixels, net)
        self.student.train()
        self.white.asked += self.per_batch * self.inverted
        self.record(**losses)

    def competition(self, s: Tensor, t: Tensor) -> Tensor:
        """R_compete = 1 - JS(T, S), in [0, 1], of logits (N, K)."""
        if self.legacy_js:
            return 1 - jensen_shannon(s, t, variant="code").clamp(0, 1)
        return 1 - jensen_shannon(s, t) / math.log(2)

    @torch.no_grad()
    def commit(self) -> None:
        """The finished batch joins the pool, rounded to 8 bits."""
        net = cast(Normalized, self.white.net)
        self.pool.add(self.pixels * net.std + net.mean)
        self.pixels, self.adam = torch.empty(0, *self.image), None
        x = self.pool.rows[-self.inverted :].float() / 255
        self.show(x, self.white(x))

    def distil(self) -> None:
        """``per_batch`` steps of the student on what is in the pool."""
        assert self.teacher is not None
        for _ in range(self.per_batch):
            with torch.no_grad():
                x = self.draw(self.kd_batch_size)
                t = self.white(x)
            loss_kd = kl(self.student(x), t, temperature=self.temperature)
            self.update(self.opts()[0], loss_kd)
        self.record(kd=loss_kd)

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """``n`` images (n, C, H, W) as the student is shown them: from the pool."""
        x = self.pool.sample(n, self.rng)
        for augmentation in self.augment:
            x = augmentation(x, self.rng)
        return x

    def rank_state(self) -> dict[str, Any]:
        """The pool, the pixels on their way into it, and what callbacks look at."""
        state: dict[str, Any] = {"pool": self.pool.save(self.pool_file)}
        if self.adam is not None:
            state |= {"pixels": self.pixels.detach(), "adam": self.adam.state_dict()}
        return state if self.seen is None else state | {"seen": tuple(self.seen)}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.pool.load(self.pool_file, state["pool"], self.device)
        if "adam" in state:
            self.begin(state["pixels"].to(self.device))
            assert self.adam is not None
            self.adam.load_state_dict(state["adam"])
        if "seen" in state:
            self.seen = Seen(*(tensor.to(self.device) for tensor in state["seen"]))

    @property
    def pool_file(self) -> Path:
        """This rank's file for what checkpoints are too small for."""
        return Path(self.trainer.default_root_dir) / f"pool_{self.global_rank}.bin"
