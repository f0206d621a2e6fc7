"""The sparse auto-encoder whose code is cGAN-KD's feature of an image for regression.

Ding et al., *Distilling and Transferring Knowledge via cGAN-generated Samples for Image Classification and Regression*
(ESWA 2023). The code has to reconstruct the image and to predict its label; as it is not negative, a penalty on its
mean keeps it sparse.

Deviations (paper / authors' code / here):
    * Redrawing: - / MSE between images in [-1, 1] / the same; the encoder sees images by the statistics of the data.
"""

from __future__ import annotations

from typing import Any, cast

from torch.nn import functional as F

from kd_lightning.data.batches import Batch, VicinalBatch
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.networks.features import SparseAutoEncoder
from kd_lightning.networks.generators.gan_blocks import from_pixels
from kd_lightning.networks.normalized import Normalized


class SparseCode(Distiller):
    """One round: one step of the student, a ``networks.features.SparseAutoEncoder``, on a batch of labelled images.

    Args:
        optimizer: makes its optimiser.
        scheduler: schedule of its learning rate, stepped once an epoch.
        sparsity: weight of the mean of the code (lambda).
        label: weight of the task's loss on the labels.
        **base: see :class:`Distiller`.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        sparsity: float = 1e-3,
        label: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.sparsity, self.label = sparsity, label

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Images with labels; for regression also those of ``source=vicinal``."""
        return {"source.images"}

    def configure_optimizers(self) -> Any:
        """One optimiser, at most one schedule."""
        return self.scheduled((self.make_optimizer(self.student.parameters()), self.make_scheduler))

    def training_step(self, batch: Batch | VicinalBatch, batch_idx: int) -> None:
        """MSE(reconstruction, image) + sparsity mean(code) + label loss(label)."""
        student = cast(Normalized, self.student)
        y = self.task.denormalise(batch.y) if isinstance(batch, VicinalBatch) else batch.y
        net = cast(SparseAutoEncoder, student.net)
        code = net.encode(student.standardise(batch.x))
        losses = {
            "redrawn": F.mse_loss(net.decoder(code).float(), from_pixels(batch.x)),
            "sparsity": self.sparsity * code.float().mean(),
            "label": self.label * self.task.loss(net.head(code), y),
        }
        self.update(self.opts()[0], losses["redrawn"] + losses["sparsity"] + losses["label"])
        self.record(**losses)
