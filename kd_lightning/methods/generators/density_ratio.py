"""The density ratio by which cGAN-KD subsamples its generator: cDRE-F-cSP of cDR-RS (Ding et al., arXiv 2103.11166).

A network psi maps features phi of an image and its label to the ratio of the densities of real and of generated
images, and is trained with a softplus loss. Real and made images of a batch have the same labels. phi is a network
trained before on real images, frozen; ``networks.density_ratio.DensityRatio`` holds both. At the end of every
epoch the loss on the validation images, and the mean ratio of real and of made images there, are measured.

Deviations (paper / authors' code / here):
    * Pixels of made images: - / as they leave the generator in CIFAR's code / rounded to 255 steps, as real images are
      and as a pool will keep them.
    * Labels that are numbers: - / an optional vicinity, off in cGAN-KD / none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.batches import Batch, VicinalBatch, rounded
from kd_lightning.distributed import collectives
from kd_lightning.losses.density_ratio import penalised_softplus, softplus_ratio
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.networks.weights import load_weights
from kd_lightning.sources.vicinity import places
from kd_lightning.teachers.white_box import FrozenTeacher

HELD_OUT = ("loss", "real", "fake")


class DensityRatio(Distiller):
    """One round: one step of psi on a batch of real images and as many made ones of the same labels.

    Args:
        ratio: images (N, C, H, W) in [0, 1] and labels to ratios (N,), see ``networks.density_ratio``.
        generator: latents and labels to images.
        optimizer: makes psi's optimiser.
        scheduler: schedule of its learning rate, stepped once an epoch.
        weights: of the generator, ``stage:NAME/generator.safetensors`` of an earlier stage or a file.
        features: weights of ``ratio.features``, ``stage:NAME/student.safetensors`` or a file; None keeps them.
        labels: weights of ``ratio.labels``, which are then frozen; None trains them.
        latent: length of z.
        penalty: lambda, weight of the deviation of the made images' mean ratio from 1.
        **base: see :class:`Distiller`.

    Raises:
        TeacherError: a file cannot be read, or holds another network.
    """

    trains_student = False
    validates = True
    keeps = ("ratio",)
    held_out: Tensor

    def __init__(
        self,
        *,
        ratio: nn.Module,
        generator: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        weights: str | None = None,
        features: str | None = None,
        labels: str | None = None,
        latent: int = 128,
        penalty: float = 0.01,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        for net, file in ((generator, weights), (ratio.features, features), (ratio.labels, labels)):
            if file is not None:
                load_weights(net, file)  # type: ignore[arg-type]
        if labels is not None:
            ratio.labels.requires_grad_(False)
        self.ratio = ratio
        self.drawn_from = FrozenTeacher(generator)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.latent, self.penalty = latent, penalty
        self.register_buffer("held_out", torch.full((len(HELD_OUT),), torch.nan))

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Images with their labels."""
        return {"source.images"}

    def student_updates_per_round(self) -> int:
        """0: the student is not trained."""
        return 0

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of psi."""
        learning = [p for p in self.ratio.parameters() if p.requires_grad]
        return self.scheduled((self.make_optimizer(learning), self.make_scheduler))

    def training_step(self, batch: Batch | VicinalBatch, batch_idx: int) -> None:
        """One batch of labelled images."""
        y = batch.y if isinstance(batch, VicinalBatch) else places(self.task, batch.y)  # type: ignore[arg-type]
        made = self.images(self.noise(len(y), self.latent), y)
        self.images_made += len(y) * collectives.world()
        real, fake = self.ratio(torch.cat([batch.x, made]), y.repeat(2)).chunk(2)
        loss = penalised_softplus(real, fake, penalty=self.penalty)
        self.update(self.opts()[0], loss)
        self.record(loss=loss, real=real.mean(), fake=fake.mean())

    @torch.no_grad()
    def images(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (N, C, H, W) of the generator, rounded to 255 steps."""
        return rounded(self.drawn_from.net(z, y))

    def on_validation_epoch_start(self) -> None:
        """Reset the sums, and the generator of the latents, which are the same in every validation."""
        super().on_validation_epoch_start()
        self.sums = torch.zeros(len(HELD_OUT) + 1, dtype=torch.float64, device=self.device)
        self.held_out_rng = torch.Generator(self.device).manual_seed(collectives.rank())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and mean ratios on images that psi was not trained on."""
        y, rng = places(self.task, batch.y), self.held_out_rng
        z = torch.randn(len(y), self.latent, device=self.device, generator=rng)
        real, fake = self.ratio(batch.x, y), self.ratio(self.images(z, y), y)
        means = torch.stack([softplus_ratio(real, fake), real.float().mean(), fake.float().mean()])
        self.sums += torch.cat([means * len(y), means.new_tensor([len(y)])])

    def on_validation_epoch_end(self) -> None:
        """Means over all ranks."""
        sums = collectives.mean(self.sums)
        self.held_out.copy_(sums[:-1] / sums[-1])
        for name, value in zip(HELD_OUT, self.held_out.tolist(), strict=True):
            self.log(f"val/ratio_{name}", value)

    def findings(self) -> dict[str, float]:
        """The last means: ``ratio/loss`` (without penalty), ``ratio/real``, ``ratio/fake``; none without val."""
        if self.held_out.isnan().all():
            return {}
        return {f"ratio/{name}": value for name, value in zip(HELD_OUT, self.held_out.tolist(), strict=True)}
