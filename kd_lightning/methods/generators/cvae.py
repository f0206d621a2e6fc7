"""The conditional variational autoencoder of FS-BBT, trained on its few images (Nguyen et al., ECCV 2022).

A stage before the student's: encoder and decoder are trained on the images and the class that the teacher predicts for
each, and the decoder is kept. The source draws from it later (``sources/fs_bbt.py``); the encoder is not needed
again. The teacher is not queried: its answers come with the images.

Deviations (paper / authors' code / here):
    * Images: the few / others than the student's, and without the last 5 % of them / the student's, all of them.
    * Weights: - / Keras' first weights / PyTorch's.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kd_lightning.data.batches import Batch
from kd_lightning.losses.vae import gaussian_kl, pixel_cross_entropy, sample_gaussian
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory


class Cvae(Distiller):
    """One round: one step of encoder and decoder. The student is not trained.

    Args:
        encoder: images (N, C, H, W) and labels (N,) to mean and log-variance of z.
        generator: the decoder, latents and labels to images; its ``logits`` are those of the pixels.
        optimizer: makes the optimiser of both.
        scheduler: schedule of its learning rate, stepped once an epoch.
        **base: see :class:`Distiller`.
    """

    trains_student = False

    def __init__(
        self,
        *,
        encoder: nn.Module,
        generator: Any,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.encoder, self.generator = encoder, generator
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Images with the teacher's answers; classes."""
        return {"teacher", "source.images", "source.answers", "task.classification"}

    def student_updates_per_round(self) -> int:
        """0: the student is not trained."""
        return 0

    def configure_optimizers(self) -> Any:
        """One optimiser for both networks, at most one schedule."""
        both = [*self.encoder.parameters(), *self.generator.parameters()]
        return self.scheduled((self.make_optimizer(both), self.make_scheduler))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """-log p(x|z,y) + KL(q(z|x,y) || N(0, I)), the first summed over pixels."""
        assert batch.t is not None
        label = batch.t.argmax(1)
        mean, logvar = self.encoder(batch.x, label)
        z = sample_gaussian(mean, logvar, self.noise(*mean.shape))
        pixels = pixel_cross_entropy(self.generator.logits(z, label), batch.x)
        kl = gaussian_kl(mean, logvar)
        self.update(self.opts()[0], pixels + kl)
        self.record(pixels=pixels, kl=kl)
