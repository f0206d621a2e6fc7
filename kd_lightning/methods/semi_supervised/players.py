"""The four networks of UGAN and its halves, their optimisers, and what they draw of a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.core.feature_hooks import capture
from kd_lightning.distributed import collectives
from kd_lightning.errors import ConfigError
from kd_lightning.methods.base.averages import average
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.semi_supervised.pair_monitor import PairMonitor
from kd_lightning.networks import head_of


class FourPlayers(Distiller):
    """Classifier, discriminator of pairs, good and bad generator. The student is an average of the classifier.

    Args:
        discriminator: images (N, C, H, W) in [0, 1] and labels (N,) to scores (N,), high for real pairs.
        generator: the good one; latents (N, latent) and labels (N,) to images.
        bad_generator: latents to images.
        optimizer: makes the classifier's optimiser.
        optimizer_d: makes the discriminator's.
        optimizer_g: makes the good generator's.
        optimizer_b: makes the bad generator's.
        scheduler: schedule of the classifier's learning rate, stepped once an epoch.
        scheduler_g: that of the three others.
        latent: length of z.
        made: images of the good generator in a step, per rank.
        made_bad: those of the bad one; None for as many.
        d_labelled: labelled images of a batch that the discriminator sees as real pairs.
        d_unlabelled: unlabelled images of a batch that it sees as real pairs with the classifier's labels.
        b_unlabelled: unlabelled images of a batch for the bad half; 0: those of the classifier's other terms, which are
            all that the two others leave.
        prior: share of each class, which balance and good images follow; None for equal shares.
        adversarial: pairs of the classifier: with its label, ``argmax``, or ``integrate`` over all labels.
        ema: decay of the moving average; None tests the classifier itself.
        **base: see :class:`Distiller`.

    Raises:
        ValueError: the student has batch norm, or ``prior`` has another length than there are classes.
    """

    keeps = ("generator", "bad_generator", "discriminator")
    generator_lr = "method.optimizer_g.lr or method.optimizer_b.lr"
    prior: Tensor

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        generator: nn.Module,
        bad_generator: nn.Module,
        optimizer: OptimizerFactory,
        optimizer_d: OptimizerFactory,
        optimizer_g: OptimizerFactory,
        optimizer_b: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        scheduler_g: SchedulerFactory | None = None,
        latent: int = 100,
        made: int = 100,
        made_bad: int | None = None,
        d_labelled: int = 20,
        d_unlabelled: int = 80,
        b_unlabelled: int = 0,
        prior: Sequence[float] | None = None,
        adversarial: Literal["argmax", "integrate"] = "argmax",
        ema: float | None = 0.9999,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if any(isinstance(module, _BatchNorm) for module in self.student.modules()):
            raise ValueError(f"{type(self).__name__} trains no student with batch norm: use student=noisy_mlp")
        shares = torch.tensor(prior or [1.0] * self.task.num_classes)
        if len(shares) != self.task.num_classes:
            raise ValueError(f"prior has {len(shares)} shares for {self.task.num_classes} classes")
        self.discriminator, self.generator, self.bad_generator = discriminator, generator, bad_generator
        self.classifier = self.student
        if ema is not None:
            self.classifier = copy.deepcopy(self.student)
            self.student.requires_grad_(False)
        self.make_optimizer, self.make_optimizer_d = optimizer, optimizer_d
        self.make_optimizer_g, self.make_optimizer_b = optimizer_g, optimizer_b
        self.make_scheduler, self.make_scheduler_g = scheduler, scheduler_g
        self.latent, self.ema, self.adversarial = latent, ema, adversarial
        self.made, self.made_bad = made, made if made_bad is None else made_bad
        self.d_labelled, self.d_unlabelled, self.b_unlabelled = d_labelled, d_unlabelled, b_unlabelled
        self.register_buffer("prior", shares / shares.sum(), persistent=False)
        self.head = head_of(self.classifier)
        self.pairs = PairMonitor()

    def configure_optimizers(self) -> Any:
        """Classifier, discriminator, good generator, bad generator."""
        return self.scheduled(
            (self.make_optimizer(self.classifier.parameters()), self.make_scheduler),
            (self.make_optimizer_d(self.discriminator.parameters()), self.make_scheduler_g),
            (self.make_optimizer_g(self.generator.parameters()), self.make_scheduler_g),
            (self.make_optimizer_b(self.bad_generator.parameters()), self.make_scheduler_g),
        )

    def keep(self) -> None:
        """Update the student, the moving average of the classifier."""
        if self.ema is not None:
            average(self.student, self.classifier, self.ema)

    def slices(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images without labels (N, C, H, W) for the classifier, the discriminator's pairs and the bad half."""
        rest = len(x) - self.d_unlabelled - self.b_unlabelled
        if rest < 1:
            raise ConfigError(
                f"source.unlabelled_batch_size={len(x)}: method.d_unlabelled={self.d_unlabelled} and "
                f"method.b_unlabelled={self.b_unlabelled} leave none for the classifier's own terms; set at least "
                f"source.unlabelled_batch_size={self.d_unlabelled + self.b_unlabelled + 1}"
            )
        x_u, x_ud, x_ub = x.split([rest, self.d_unlabelled, self.b_unlabelled])
        return x_u, x_ud, x_ub if self.b_unlabelled else x_u

    def good_images(self, y: Tensor) -> Tensor:
        """Images (N, C, H, W) of labels (N,), from fresh latents."""
        self.images_made += len(y) * collectives.world()
        return self.generator(self.latents(len(y)), y)

    def bad_images(self, z: Tensor) -> Tensor:
        """Images (N, C, H, W) of latents (N, latent)."""
        self.images_made += len(z) * collectives.world()
        return self.bad_generator(z)

    def latents(self, n: int) -> Tensor:
        """Latents (n, latent), uniform in [0, 1]."""
        return torch.rand(n, self.latent, generator=self.rng, device=self.device)

    def labels(self, n: int) -> Tensor:
        """Labels (n,) int64 in the shares of ``prior``; chance decides which classes get one more."""
        places = (torch.arange(n, device=self.device) + torch.rand((), generator=self.rng, device=self.device)) / n
        return torch.bucketize(places, self.prior.cumsum(0)).clamp(max=self.task.num_classes - 1)

    def features_of(self, x: Tensor) -> Tensor:
        """Features (N, D) of images: what enters the classifier's last layer."""
        with capture(self.classifier, inputs=(self.head,)) as taps:
            self.classifier(x)
        return taps[self.head].flatten(1)

    @torch.no_grad()
    def scores(self, x: Tensor, logits: Tensor) -> Tensor:
        """The discriminator's scores of images with their most likely label (N,), or with ``integrate`` all (N, K)."""
        if self.adversarial == "argmax":
            return self.discriminator(x, logits.argmax(1))
        return self.discriminator(*every_label(x, logits.shape[1])).view_as(logits)

    def on_train_epoch_end(self) -> None:
        """Also say it if the discriminator wins everything."""
        super().on_train_epoch_end()
        self.pairs.tell(int(self.trainer.num_training_batches))


def every_label(x: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Every image (N, C, H, W) with every label: images (N K, C, H, W) and labels (N K,)."""
    return x.repeat_interleave(num_classes, 0), torch.arange(num_classes, device=x.device).repeat(len(x))
