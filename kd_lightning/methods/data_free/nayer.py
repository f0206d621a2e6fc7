"""NAYER: noisy layer data generation for data-free knowledge distillation (Tran et al., CVPR 2024, arXiv 2310.00258).

A generator of random latents has to learn what each of them should show. NAYER's generator is fed a constant embedding
of a class name, and the randomness comes from a noisy layer after the embedding, whose weights are redrawn for every
batch. The generator thus starts near each class and needs few steps, and one noisy layer makes an image of every class.
The images go to a pool, on which the student is distilled. The rest is FastDFKD's: the moving average of batch-norm
statistics, and an adversarial term on images whose class student and teacher agree on.

Deviations (paper / authors' code / here):
    * Embeddings: of CLIP's text encoder / likewise, of "a image of NAME" / random orthonormal rows, all classes equally
      far apart, unless ``embeddings`` names a file; nothing is downloaded.
    * Noisy layers: one for as many images as there are classes / the same, as modules / one tensor of all.
    * Batch: - / filled up with random classes or a part of a run / as many whole runs of the classes as fit.
    * Warm-up epochs: - / shorter than the others / as long, with nothing to do once their images are made.
    * Student while images are made: - / evaluation mode for the first batch of an epoch, training mode for the others /
      evaluation mode.
    * Student: - / shuffled passes over the pool / draws with replacement.
    * Several processes: - / - / one generator for all, noisy layers of each one's own.
    * Result: - / best test accuracy over all epochs / the last step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.errors import ConfigError
from kd_lightning.losses.adversarial import masked_kl
from kd_lightning.losses.batch_norm import BatchNormTap
from kd_lightning.methods.base.distiller import OptimizerFactory
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.methods.base.image_pool import ImagePool
from kd_lightning.methods.base.phases import redraw, restart
from kd_lightning.methods.base.statistics import BatchNormMixture, Best


class Nayer(ImagePool):
    """One training batch makes a batch of images, or takes ``per_batch`` student steps on the pool.

    Args:
        generator: outputs (N, hidden) of a noisy layer to images (N, C, H, W) in data units.
        optimizer_g: makes the optimiser of generator and noisy layers.
        num_classes: number of the teacher's classes, K.
        embeddings: a safetensors file with a tensor ``embedding`` (K, D), a row for each class in the order of the
            data set's; None for random orthonormal rows.
        dim: length D of those.
        hidden: length of a noisy layer's output.
        batch_size: images made together, per rank, rounded down to a multiple of K.
        g_steps: generator steps for one batch of images (g).
        g_loops: batches of images an epoch.
        g_life: epochs until the generator is reinitialised.
        bn: weight of the batch-norm statistics (alpha_bn).
        oh: weight of the cross-entropy to the class (alpha_ce).
        adv: weight of the adversarial term against the student (alpha_adv).
        momentum: r of the batch-norm statistics.
        warmup: first epochs, which only make images.
        warmup_loops: batches of images in each of them.
        **pool: see :class:`ImagePool`; ``augment`` is also how the teacher sees new images.
    """

    embedding: Tensor
    generator_lr = "method.optimizer_g.lr"
    idle_epochs = "warmup"
    keeps = ()

    def __init__(
        self,
        *,
        generator: nn.Module,
        optimizer_g: OptimizerFactory,
        num_classes: int,
        embeddings: str | None = None,
        dim: int = 512,
        hidden: int = 1000,
        batch_size: int = 400,
        g_steps: int = 30,
        g_loops: int = 2,
        g_life: int = 10,
        bn: float = 10.0,
        oh: float = 0.5,
        adv: float = 1.33,
        momentum: float = 0.9,
        warmup: int = 20,
        warmup_loops: int = 10,
        **pool: Any,
    ) -> None:
        super().__init__(**pool)
        if batch_size < num_classes:
            raise ValueError(f"batch_size={batch_size} is less than one image of each of {num_classes} classes")
        embedding = orthonormal(num_classes, dim) if embeddings is None else read_embeddings(embeddings, num_classes)
        self.register_buffer("embedding", embedding)
        self.described_by = "orthonormal" if embeddings is None else Path(embeddings).name
        self.generator, self.norm = generator, nn.BatchNorm1d(embedding.shape[1])
        self.make_optimizer_g, self.hidden, self.runs = optimizer_g, hidden, batch_size // num_classes
        self.g_steps, self.g_loops, self.g_life = g_steps, g_loops, g_life
        self.bn, self.oh, self.adv = bn, oh, adv
        self.warmup, self.warmup_loops = warmup, warmup_loops
        self.mixture = BatchNormMixture(momentum)

    def configure_optimizers(self) -> Any:
        """The optimisers of student and generator, in this order."""
        students, schedules = super().configure_optimizers()
        return [*students, self.make_optimizer_g([*self.norm.parameters(), *self.generator.parameters()])], schedules

    def rounds_an_epoch(self) -> int:
        """Training batches of an epoch: those that make images, then the student's."""
        return max(self.warmup_loops if self.warmup else 0, self.g_loops + self.kd_steps // self.per_batch)

    def synthesises(self, n: int) -> bool:
        """Whether training batch ``n`` makes images, as the first ones of each epoch do."""
        return n % self.rounds_an_epoch() < (self.warmup_loops if self.warms_up(n) else self.g_loops)

    def distils(self, n: int) -> bool:
        """Whether training batch ``n`` trains the student: after warm-up, all that make no images."""
        return not self.warms_up(n) and not self.synthesises(n)

    def warms_up(self, n: int) -> bool:
        """Whether training batch ``n`` of the fit belongs to the epochs without a student."""
        return n < self.warmup * self.rounds_an_epoch()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Synthesise images, or train the student."""
        n = self.rounds_done
        if n % (self.g_life * self.rounds_an_epoch()) == 0:
            redraw(nn.ModuleList([self.norm, self.generator]), self.common_rng())
        if self.synthesises(n):
            self.record(**self.synthesise())
        elif self.distils(n):
            self.record(kd=self.distil())

    def on_train_epoch_end(self) -> None:
        """Step the schedules, which count the student's epochs, only after the warm-up."""
        if self.current_epoch >= self.warmup:
            super().on_train_epoch_end()

    def synthesise(self) -> dict[str, Tensor]:
        """Add a batch of images to the pool; returns the loss terms."""

        # Noisy layers: W ~ N(0, 1), b = 0, one for each run of the classes; fresh optimisers
        weight = self.noise(self.runs, self.embedding.shape[1], self.hidden).requires_grad_()
        bias = torch.zeros(self.runs, 1, self.hidden, device=self.device, requires_grad=True)
        restart(self.opts()[1])
        optimizers: list[Any] = [self.opts()[1], self.make_optimizer_g([weight, bias])]
        y = torch.arange(len(self.embedding), device=self.device).repeat(self.runs)

        # g steps on generator and noisy layers: alpha_bn L_BN + alpha_ce L_CE + alpha_adv L_adv
        best = Best()
        with frozen(self.student, in_eval=True):
            for _ in range(self.g_steps):
                x = self.images(weight, bias)
                view = self.view(x)
                with BatchNormTap(self.white.net) as tap:
                    t = self.white(view)
                losses = {"bn": self.bn * self.mixture.loss(tap), "oh": self.oh * F.cross_entropy(t.float(), y)}
                if self.adv and not self.warms_up(self.rounds_done):
                    losses["adv"] = self.adv * masked_kl(self.student(view), t)
                loss = torch.stack(list(losses.values())).sum()
                best.offer(loss, x, t)
                for opt in optimizers:
                    opt.zero_grad()
                self.manual_backward(loss)
                for opt in optimizers:
                    opt.step()
        self.mixture.update(tap.statistics)

        # Add the images of the lowest loss to the pool
        _, x, t = best.kept
        self.pool.add(x)
        self.show(x, t)
        return losses

    def images(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Images (N, C, H, W) of noisy layers (runs, D, hidden) and (runs, 1, hidden): one of each class for each."""
        e = self.norm(self.embedding).expand(len(weight), -1, -1)
        return self.generator(torch.baddbmm(bias, e, weight).flatten(0, 1))

    def findings(self) -> dict[str, Any]:
        """The class embeddings that were used: those of class names are knowledge about the data."""
        return {"embeddings": self.described_by}

    def rank_state(self) -> dict[str, Any]:
        """The moving average of the statistics, too."""
        return {**super().rank_state(), "ema": self.mixture.average}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_rank_state(state)
        self.mixture.load(state["ema"], self.device)


def orthonormal(classes: int, dim: int) -> Tensor:
    """Random rows (classes, dim) of a fixed seed, orthonormal if ``dim`` is at least ``classes``."""
    return nn.init.orthogonal_(torch.empty(classes, dim), generator=torch.Generator().manual_seed(0))


def read_embeddings(file: str, classes: int) -> Tensor:
    """Read class embeddings (classes, D) from a safetensors file.

    Raises:
        ConfigError: the file cannot be read, or holds no finite tensor of this shape.
    """
    try:
        found = load_file(file).get("embedding")
    except (OSError, SafetensorError) as error:
        found, what = None, str(error)
    else:
        what = "the file holds none" if found is None else f"found {tuple(found.shape)} or values that are not finite"
    if found is None or found.ndim != 2 or len(found) != classes or not found.isfinite().all():
        raise ConfigError(f"method.embeddings={file}: expected a finite tensor 'embedding' ({classes}, D): {what}")
    return found.float()
