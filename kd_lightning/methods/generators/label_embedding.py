"""T2 of CcGAN's improved label input (Ding et al., TPAMI 2022): maps a label to a feature vector h.

T1 (``networks.label_embedding.ImageToLabel``) is a fit of its own by ``supervised``: image -> h -> label. Here its last
layer is frozen, and a small network learns to map a noisy label to a vector that this layer maps back to the label.

Deviations (paper / authors' code / here):
    * Labels: the distinct ones, in the order of an epoch / likewise / drawn, each as likely as any other.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.nn import functional as F

from kd_lightning.data.batches import VicinalBatch
from kd_lightning.methods.base.distiller import Distiller, OptimizerFactory, SchedulerFactory
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.networks.label_embedding import ImageToLabel
from kd_lightning.networks.normalized import Normalized


class LabelEmbedding(Distiller):
    """One round: one step of T2; the student is T1 (``init``: its weights) and is not trained.

    Args:
        embedding: T2, labels (N,) in [0, 1] to vectors (N, embed) as T1's last layer reads them.
        optimizer: makes its optimiser.
        scheduler: schedule of its learning rate, stepped once an epoch.
        noise_std: standard deviation of the noise on labels, which are then clipped to [0, 1].
        **base: see :class:`Distiller`.
    """

    trains_student = False
    keeps = ("embedding",)

    def __init__(
        self,
        *,
        embedding: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        noise_std: float = 0.2,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.embedding = embedding
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.noise_std = noise_std

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Labels as a vicinal source draws them."""
        return {"source.vicinity"}

    def student_updates_per_round(self) -> int:
        """0: the student is not trained."""
        return 0

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of T2."""
        return self.scheduled((self.make_optimizer(self.embedding.parameters()), self.make_scheduler))

    def training_step(self, batch: VicinalBatch, batch_idx: int) -> None:
        """(h2y(T2(y')) - y')^2 at y' = y + noise."""
        t1 = cast(ImageToLabel, cast(Normalized, self.student).net)
        y = (batch.target + self.noise_std * self.noise(len(batch.target))).clamp(0, 1)
        with frozen(t1):
            loss = F.mse_loss(t1.h2y(self.embedding(y)).float().squeeze(1), y)
            self.update(self.opts()[0], loss)
        self.record(mse=loss)
