"""CcGAN: a generator whose condition is a number (Ding et al., ICLR 2021 and TPAMI 2022), as cGAN-KD trains it.

Hardly any image has exactly the wanted label, so real images of nearby labels are used instead: with equal weights
within a hard vicinity (HVDL), or weighted by their distance within a soft one (SVDL). The label enters both networks
through an embedding trained before (improved label input). ``source=vicinal`` draws the images and labels.

Deviations (paper / authors' code / here):
    * SVDL: weighted means / divided by the number of images, not by the sum of weights / the code.
    * Targets: - / not clipped, so that some lie outside the range that the embedding was trained on / likewise.
    * Average of the generator's weights: none / none / ``ema``, None for none.
    * Latents of the discriminator's steps: - / a graph through the generator is built and not used / none is.
    * Images for people: - / leave the generator in eval mode for the discriminator's next steps / do not.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from kd_lightning.data.batches import VicinalBatch
from kd_lightning.losses.gan import hinge_d, hinge_g
from kd_lightning.methods.base.conditional_gan import ConditionalGan
from kd_lightning.methods.base.freezing import frozen
from kd_lightning.networks.weights import load_weights


class CcGan(ConditionalGan):
    """One round: ``d_steps`` steps of the discriminator, each on its part of the batch, then one of the generator.

    Args:
        generator: latents and labels to images; its ``embedding`` is frozen.
        discriminator: images and labels to scores; its ``embedding`` is frozen, too.
        embedding: weights of both embeddings, ``stage:NAME/embedding.safetensors`` of an earlier stage or a file; None
            keeps their weights.
        **gan: see :class:`ConditionalGan`.

    Raises:
        TeacherError: the file cannot be read, or holds another embedding.
    """

    def __init__(
        self, *, generator: nn.Module, discriminator: nn.Module, embedding: str | None = None, **gan: Any
    ) -> None:
        if embedding is not None:
            for net in (generator, discriminator):
                own = cast(nn.Module, net.embedding)
                load_weights(own, embedding)
                own.requires_grad_(False)
        super().__init__(generator=generator, discriminator=discriminator, **gan)

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Images of labels near the wanted ones, which are numbers."""
        return {"source.vicinity", "task.regression"}

    def training_step(self, batch: VicinalBatch, batch_idx: int) -> None:
        """One batch of wanted labels."""
        opt_d, opt_g = self.opts()

        # Discriminator: real and generated images, both with the target label
        for part in zip(*(each.chunk(self.d_steps) for each in batch), strict=True):
            now = VicinalBatch(*part)
            with torch.no_grad():
                made = self.generate(now.fake)
            both = torch.cat([self.view(made), self.view(now.x)])
            verdicts = self.discriminator(both, now.target.repeat(2))
            on_made, on_real = verdicts.chunk(2)
            loss_d = hinge_d(on_real, on_made, real_weight=now.real_weight, fake_weight=now.fake_weight)
            self.update(opt_d, loss_d)

        # Generator
        with frozen(self.discriminator):
            loss_g = hinge_g(self.discriminator(self.view(self.generate(now.goal)), now.goal))
            self.update(opt_g, loss_g)

        self.keep()
        self.record(d=loss_d, g=loss_g, on_real=on_real.mean(), on_made=on_made.mean())
