"""SKDCGN: source-free distillation of counterfactual generators (Ambekar et al., ECCV workshop 2022, arXiv 2208.04226).

A trained CGN is a black box that maps latents and a label to the output of one of its mechanisms. For each mechanism a
small class-conditional generator (TinyGAN, Chang and Lu, ACCV 2020) learns to reproduce this output from the same
latents and label, against a discriminator for which the teacher's images are the real ones; no real image is used.
Composed like the teacher's mechanisms, the students generate counterfactuals.

Deviations (paper / authors' code / here):
    * KL between the discriminator's features: named in the README / computed and not returned / ``kl`` weighs it, 0
      by default, over the last level or all.
    * Pairs of latents and image: - / shifted by a row, and drawn from other latents / those the image was drawn from.
    * Textures: - / moved at random before they are learned / learned as they are drawn, and moved afterwards.
    * Images of the teacher: - / stretched from darkest to brightest and kept as JPEG / as they are, in 8 bits.
    * Size: - / the teacher's 32 pixels are doubled to 64, which the students draw / the same, and what they draw is
      reduced to 32 by means before it is composed.
    * Mask: - / three channels, as of the other mechanisms / the same; their mean is the mask.
    * ``L_GAN_S`` of TinyGAN: dropped, as there are no real images.
    * Features of the teacher's images: - / from before the discriminator's step / from after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.data.batches import Batch
from kd_lightning.distributed import collectives
from kd_lightning.losses.counterfactual import feature_distance
from kd_lightning.losses.gan import hinge_d, hinge_g
from kd_lightning.methods.base.conditional_gan import ConditionalGan
from kd_lightning.methods.base.freezing import frozen


class Skdcgn(ConditionalGan):
    """One round: a step of the discriminator, then one of the student, on one batch of the teacher's images.

    Args:
        alpha: weight of each level of the discriminator's features (L_feat), from the first to the last.
        pix: lambda_1, weight of the pixels' loss in the first epoch.
        pix_decay: decrease of ``pix`` in each epoch, down to 0.
        adv: lambda_2, weight of the adversarial loss.
        n_critic: one of so many rounds has the adversarial loss.
        kl: weight of the KL between softmaxes of features.
        kl_levels: ``last``, or ``all`` summed.
        temperature: T of that KL.
        **gan: see :class:`ConditionalGan`; the discriminator also returns its features.
    """

    def __init__(
        self,
        *,
        alpha: Sequence[float],
        pix: float = 0.2,
        pix_decay: float = 0.01,
        adv: float = 0.01,
        n_critic: int = 5,
        kl: float = 0.0,
        kl_levels: Literal["last", "all"] = "last",
        temperature: float = 8.0,
        **gan: Any,
    ) -> None:
        super().__init__(**gan)
        self.alpha, self.adv, self.n_critic = tuple(alpha), adv, n_critic
        self.pix, self.pix_decay = pix, pix_decay
        self.kl, self.kl_levels, self.temperature = kl, kl_levels, temperature

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Images, their labels, and the latents they were drawn from."""
        return {"source.images", "source.labels", "source.latents", "task.classification"}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch of the teacher's images ``x`` with the labels ``y`` and latents ``t`` they were drawn from."""
        assert batch.y is not None
        assert batch.t is not None
        opt_d, opt_g = self.opts()
        y, made = batch.y, self.learner(batch.t, batch.y)
        told = batch.x.expand(-1, made.shape[1], -1, -1)
        if told.shape != made.shape:
            told = F.interpolate(told, made.shape[2:])  # nearest
        self.images_made += len(y) * collectives.world()

        # Discriminator: the teacher's images are the real ones
        loss_d = hinge_d(self.discriminator(told, y)[0], self.discriminator(made.detach(), y)[0])
        self.update(opt_d, loss_d)

        # Student: L_feat + lambda_1 L_pix + lambda_2 L_adv + lambda_KL L_KL
        with frozen(self.discriminator):
            with torch.no_grad():
                wanted = self.discriminator(told, y)[1]
            verdict, features = self.discriminator(made, y)
            losses = {"feat": feature_distance(features, wanted, self.alpha)}
            if weight := self.pix_weight(self.current_epoch):
                losses["pix"] = weight * 2 * (made - told).abs().mean()  # of [-1, 1]
            if (self.rounds_done + 1) % self.n_critic == 0:
                losses["adv"] = self.adv * hinge_g(verdict)
            if self.kl:
                levels = slice(None) if self.kl_levels == "all" else slice(-1, None)
                pairs = zip(features[levels], wanted[levels], strict=True)
                losses["kl"] = self.kl * torch.stack([channel_kl(f, w, self.temperature) for f, w in pairs]).sum()
            self.update(opt_g, torch.stack(list(losses.values())).sum())

        self.keep()
        self.record(d=loss_d, **losses, distance=(made.detach() - told).abs().mean())

    def pix_weight(self, epoch: int) -> float:
        """Lambda_1 in an epoch, counted from 0."""
        return max(0.0, self.pix - self.pix_decay * epoch)


def channel_kl(made: Tensor, told: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) over channels, summed over positions, a mean over images.

    Args:
        made: features of the student's images (N, C, H, W).
        told: those of the teacher's.
        temperature: T.
    """
    log_q, log_p = (F.log_softmax(features.float() / temperature, dim=1) for features in (made, told))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
