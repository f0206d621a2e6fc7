"""Adaptive DeepInversion: dreaming to distill (Yin et al., CVPR 2020, arXiv 1912.08795).

DeepInversion's images show what the teacher expects of a class, and soon teach the student nothing new. Here they
are made while the student is trained: a competition term favours pixels on which the two disagree.
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
from typing import Any, cast

import torch
from torch import Tensor

from kd_lightning.losses.adversarial import jensen_shannon
from kd_lightning.losses.deep_inversion import inversion_step
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.image_pool import ImagePool
from kd_lightning.networks.normalized import Normalized


class AdaptiveDeepInversion(ImagePool):
    """One training batch takes ``per_batch`` steps: on the pixels of a new batch or, once it is done, of the student.

    Args:
        image: shape (C, H, W) of an image.
        inverted: images optimised together, per rank.
        steps: Adam's steps for each such batch, a multiple of ``per_batch``.
        lr: Adam's learning rate, on standardised pixels.
        bn: weight of the batch-norm statistics (alpha_f).
        tv: weight of the total variation (alpha_tv); the norm grows with the square root of ``inverted``.
        l2: weight of the norm (alpha_l2).
        compete: weight of the competition (alpha_c).
        clip: whether pixels are kept in the range of images at every step.
        jitter: largest shift in pixels.
        flip: mirror in every second step.
        legacy_js: the code's competition, see the deviations above.
        **pool: see :class:`ImagePool`.
    """

    def __init__(
        self,
        *,
        image: Sequence[int],
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
        legacy_js: bool = False,
        **pool: Any,
    ) -> None:
        super().__init__(**pool)
        if steps % self.per_batch:
            raise ValueError(f"per_batch must divide steps={steps}, got {self.per_batch}")
        self.image, self.inverted, self.steps, self.lr = tuple(image), inverted, steps, lr
        self.bn, self.tv, self.l2, self.compete = bn, tv, l2, compete
        self.clip, self.jitter, self.flip, self.legacy_js = clip, jitter, flip, legacy_js
        self.pixels = torch.empty(0, *self.image)
        self.adam: torch.optim.Adam | None = None

    def rounds_an_epoch(self) -> int:
        """Training batches from one new batch of images to the next."""
        return (self.steps + self.kd_steps) // self.per_batch

    def distils(self, n: int) -> bool:
        """Whether the pixels of the round of training batch ``n`` are done, so that it trains the student."""
        return n % self.rounds_an_epoch() * self.per_batch >= self.steps

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Optimise pixels and add them to the pool when they are done, or train the student."""
        place = self.rounds_done % self.rounds_an_epoch() * self.per_batch
        if place == 0:
            self.begin(torch.randn(self.inverted, *self.image, device=self.device, generator=self.rng))
        if place < self.steps:
            self.synthesise()
        if place == self.steps - self.per_batch:
            self.commit()
        if self.distils(self.rounds_done):
            self.record(kd=self.distil())

    def begin(self, noise: Tensor) -> None:
        """Start a new batch of standardised pixels (N, C, H, W), with a new optimiser."""
        self.pixels = noise.requires_grad_()
        self.adam = torch.optim.Adam([self.pixels], lr=self.lr)

    def synthesise(self) -> None:
        """Take ``per_batch`` steps on the pixels; neither network changes."""
        assert self.adam is not None
        net = cast(Normalized, self.white.net)
        # every class equally often, over the whole pool
        y = torch.arange(self.images_made, self.images_made + self.inverted, device=self.device) % self.task.num_classes
        draws: dict[str, Any] = {"device": self.device, "generator": self.rng}
        shifts = torch.randint(-self.jitter, self.jitter + 1, (self.per_batch, 2), **draws).tolist()
        mirrored = (torch.rand(self.per_batch, **draws) < 0.5).tolist()
        with frozen(self.student, in_eval=True), torch.autocast(self.device.type, enabled=False):
            for shift, mirror in zip(shifts, mirrored, strict=True):
                losses = inversion_step(
                    net,
                    self.pixels,
                    y,
                    self.adam,
                    shift=shift,
                    mirrored=self.flip and mirror,
                    bn=self.bn,
                    tv=self.tv,
                    l2=self.l2,
                    clip=self.clip,
                    compete=self.rivalry if self.compete else None,
                )
        self.white.asked += self.per_batch * self.inverted
        self.record(**losses)

    def rivalry(self, x: Tensor, t: Tensor) -> Tensor:
        """alpha_c R_compete of images (N, C, H, W) and the teacher's logits (N, K) for them."""
        return self.compete * self.competition(self.student(x), t)

    def competition(self, s: Tensor, t: Tensor) -> Tensor:
        """R_compete = 1 - JS(T, S), in [0, 1], of logits (N, K)."""
        if self.legacy_js:
            return 1 - jensen_shannon(s, t, variant="code").clamp(0, 1)
        return 1 - jensen_shannon(s, t) / math.log(2)

    @torch.no_grad()
    def commit(self) -> None:
        """Add the finished batch to the pool, rounded to 8 bits."""
        net = cast(Normalized, self.white.net)
        self.pool.add(self.pixels * net.std + net.mean)
        self.pixels, self.adam = torch.empty(0, *self.image), None
        x = self.pool.rows[-self.inverted :].float() / 255
        self.show(x, self.white(x))

    def rank_state(self) -> dict[str, Any]:
        """The unfinished pixels and their optimiser, too."""
        if self.adam is None:
            return super().rank_state()
        return {**super().rank_state(), "pixels": self.pixels.detach(), "adam": self.adam.state_dict()}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        super().load_rank_state(state)
        if "adam" in state:
            self.begin(state["pixels"].to(self.device))
            assert self.adam is not None
            self.adam.load_state_dict(state["adam"])
