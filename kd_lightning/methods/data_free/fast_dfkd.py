"""FastDFKD: up to 100x faster data-free knowledge distillation (Fang et al., AAAI 2022).

Inverting the teacher from scratch takes hundreds of steps for every batch. Here a generator is meta-learned so
that a few steps on a copy of it, together with the batch's latents, suffice: the generator learns what all batches
have in common, the copy the rest. The images go to a pool, on which the student is distilled.

Deviations (paper / authors' code / here):
    * Meta gradient: sum over the inner steps / that, or Reptile's / the same two.
    * Batch-norm term: - / from the second round on a batch explains only 1-r of the statistics, earlier ones the
      rest / as the code.
    * Adversarial term: - / from the last of the warm-up rounds on / from the first round after them.
    * Student: - / shuffled passes over the pool / draws with replacement. The warm-up rounds stand in for the first
      student steps, so the student has ``warmup * per_batch`` steps less.
    * Inner loop: - / a host synchronisation in each step, and with MAML a last one of the copy, which nobody
      uses / neither.
    * Several processes: - / - / each has its own copy and latents; the meta gradient is their mean.
    * Result: - / best test accuracy over all epochs / the last step.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.losses.adversarial import masked_kl
from kd_lightning.losses.batch_norm import BatchNormTap
from kd_lightning.methods.base.distiller import OptimizerFactory
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.image_pool import ImagePool
from kd_lightning.methods.base.statistics import BatchNormMixture, Best


class FastDfkd(ImagePool):
    """One training batch makes a batch of images, or takes ``per_batch`` student steps on the pool.

    Args:
        generator: latents (N, latent) to images (N, C, H, W) in data units.
        optimizer_g: makes the generator's optimiser.
        latent: length of z.
        batch_size: images made together, per rank.
        num_classes: number of the teacher's classes.
        steps: k, inner steps for one batch of images.
        lr_z: learning rate of the latents; that of the copy is ``optimizer_g``'s, the generator's k times that.
        bn: weight of the batch-norm statistics.
        oh: weight of the cross-entropy to the labels drawn.
        adv: weight of the adversarial term against the student.
        momentum: r of the batch-norm statistics.
        meta: first-order MAML or Reptile.
        warmup: rounds that only make images.
        reset_at: rounds after warm-up until the generator's first layer is reinitialised; None for never.
        **pool: see :class:`ImagePool`; ``augment`` is also how the teacher sees new images.
    """

    generator_lr = "method.optimizer_g.lr"

    def __init__(
        self,
        *,
        generator: nn.Module,
        optimizer_g: OptimizerFactory,
        num_classes: int,
        latent: int = 256,
        batch_size: int = 256,
        steps: int = 10,
        lr_z: float = 0.01,
        bn: float = 10.0,
        oh: float = 0.4,
        adv: float = 1.1,
        momentum: float = 0.9,
        meta: Literal["maml", "reptile"] = "maml",
        warmup: int = 20,
        reset_at: int | None = 120,
        **pool: Any,
    ) -> None:
        super().__init__(**pool)
        if meta not in ("maml", "reptile"):
            raise ValueError(f"unknown meta={meta!r}: take maml or reptile")
        self.generator, self.make_optimizer_g = generator, optimizer_g
        self.num_classes, self.latent, self.batch_size = num_classes, latent, batch_size
        self.steps, self.lr_z, self.bn, self.oh, self.adv = steps, lr_z, bn, oh, adv
        self.meta, self.warmup, self.reset_at = meta, warmup, reset_at
        self.mixture = BatchNormMixture(momentum)

    def configure_optimizers(self) -> Any:
        """The optimisers of student and meta-generator, in this order."""
        students, schedules = super().configure_optimizers()
        opt_meta = self.make_optimizer_g(self.generator.parameters())
        for group in opt_meta.param_groups:
            group["lr"] *= self.steps  # one meta step is as long as k inner ones
        return [*students, opt_meta], schedules

    def distils(self, n: int) -> bool:
        """Whether training batch ``n`` trains the student: after warm-up, all but the first of each round."""
        return n > self.warmup and n % self.rounds_an_epoch() != 0

    def rounds_an_epoch(self) -> int:
        """Training batches of one round of the paper."""
        return 1 + self.kd_steps // self.per_batch

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Synthesise images, or train the student."""
        if self.distils(self.rounds_done):
            self.record(kd=self.distil())
        else:
            self.record(**self.synthesise())

    def synthesise(self) -> dict[str, Tensor]:
        """Add a batch of images to the pool, and take a meta step of the generator; returns the loss terms."""
        opt_meta = self.opts()[1]
        made = self.pool.added // self.batch_size
        adversarial = self.adv > 0 and made >= self.warmup
        if self.reset_at is not None and made == self.warmup + self.reset_at:
            self.redraw_first_layer()

        # Inner problem: a copy G' of the generator, free latents z, a label for each
        fast = copy.deepcopy(self.generator)
        z = self.noise(self.batch_size, self.latent).requires_grad_()
        y = torch.randint(self.num_classes, (self.batch_size,), generator=self.rng, device=self.device)
        opt = self.make_optimizer_g([{"params": fast.parameters()}, {"params": [z], "lr": self.lr_z}])
        best = Best()
        opt_meta.zero_grad()
        with frozen(self.student, in_eval=True):
            for step in range(self.steps):
                x = fast(z)
                view = self.view(x)
                with BatchNormTap(self.white.net) as tap:
                    t = self.white(view)
                losses = {"bn": self.bn * self.mixture.loss(tap), "oh": self.oh * F.cross_entropy(t.float(), y)}
                if adversarial:
                    losses["adv"] = self.adv * masked_kl(self.student(view), t)
                loss = torch.stack(list(losses.values())).sum()
                best.offer(loss, x, t)
                opt.zero_grad()
                loss.backward()
                if self.meta == "maml":
                    self.add_gradient(fast)
                if self.meta == "reptile" or step + 1 < self.steps:  # MAML does not use the last step of the copy
                    opt.step()

        # Outer problem: update the generator itself
        if self.meta == "reptile":
            self.towards(fast)
        self.average_gradient()
        opt_meta.step()

        # Add to the statistics' moving average and to the pool
        self.mixture.update(tap.statistics)
        _, x, t = best.kept
        self.pool.add(x)
        self.show(x, t)
        return losses

    def add_gradient(self, fast: nn.Module) -> None:
        """First-order MAML: add the copy's gradient to the generator's."""
        for p, q in zip(self.generator.parameters(), fast.parameters(), strict=True):
            assert q.grad is not None
            p.grad = q.grad.clone() if p.grad is None else p.grad.add_(q.grad)

    def towards(self, fast: nn.Module) -> None:
        """Reptile: the difference to the copy as gradient, times 67 as in the code, which Adam cancels."""
        for p, q in zip(self.generator.parameters(), fast.parameters(), strict=True):
            p.grad = 67 * (p.detach() - q.detach())

    def average_gradient(self) -> None:
        """Average the meta gradient over ranks, each of which has its own inner loop."""
        if self.trainer.world_size > 1:
            for p in self.generator.parameters():
                p.grad = self.trainer.strategy.reduce(p.grad, reduce_op="mean")

    @torch.no_grad()
    def redraw_first_layer(self) -> None:
        """Reinitialise the first linear layer and the batch norm after it: N(0, 0.02), biases 0."""
        rng = self.common_rng()
        linear = next(m for m in self.generator.modules() if isinstance(m, nn.Linear))
        norm = next(m for m in self.generator.modules() if isinstance(m, nn.BatchNorm2d))
        for layer in (linear, norm):
            layer.weight.copy_(0.02 * torch.randn(layer.weight.shape, generator=rng))
            layer.bias.zero_()

    def rank_state(self) -> dict[str, Any]:
        """The moving average of the statistics, too."""
        return {**super().rank_state(), "ema": self.mixture.average}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_rank_state(state)
        self.mixture.load(state["ema"], self.device)
