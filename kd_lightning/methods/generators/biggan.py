"""BigGAN with few images: the class-conditional generator of cGAN-KD (Ding et al., ESWA 2023, arXiv 2104.03164).

BigGAN (Brock, Donahue and Simonyan, ICLR 2019): hinge loss and projection discriminator, several steps of the
discriminator for one of the generator, an average of the generator's weights at the end. DiffAugment (Zhao et al.,
NeurIPS 2020) keeps the discriminator from memorising the images. No teacher is used.

Deviations (paper / authors' code / here):
    * DiffAugment: cGAN-KD's code draws it for real and made images put together / likewise / likewise.
    * Average: of every entry of the state / likewise / the vectors of spectral norm, and counts, are copied.
    * Latents of the discriminator's steps: - / a graph through the generator is built and not used / none is.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.batches import Batch
from kd_lightning.losses.gan import hinge_d, hinge_g
from kd_lightning.methods.base.conditional_gan import ConditionalGan
from kd_lightning.methods.base.freezing import frozen


class BigGan(ConditionalGan):
    """One round: ``d_steps`` steps of the discriminator, each on its part of the batch, then one of the generator.

    Args:
        accumulate: parts in which each step's images go through the networks one after the other, their gradients
            added up; a BatchNorm sees one part at a time.
        **gan: see :class:`ConditionalGan`.
    """

    def __init__(self, *, accumulate: int = 1, **gan: Any) -> None:
        super().__init__(**gan)
        self.accumulate = accumulate

    @classmethod
    def needs(cls, **settings: Any) -> set[str]:
        """Images with their classes."""
        return {"source.images", "source.labels", "task.classification"}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch of labelled images."""
        assert batch.y is not None
        opt_d, opt_g = self.opts()

        # Discriminator: real images with their classes, generated images of random classes
        pieces = self.d_steps * self.accumulate
        parts = zip(batch.x.chunk(pieces), batch.y.chunk(pieces), strict=True)
        for _ in range(self.d_steps):
            opt_d.zero_grad()
            for x, y in islice(parts, self.accumulate):
                made_y = self.classes(len(x))
                with torch.no_grad():
                    made = self.generate(made_y)
                verdicts = self.discriminator(self.view(torch.cat([made, x])), torch.cat([made_y, y]))
                on_made, on_real = verdicts.split([len(made), len(x)])
                loss_d = hinge_d(on_real, on_made)
                self.manual_backward(loss_d / self.accumulate)
            opt_d.step()

        # Generator
        opt_g.zero_grad()
        for _ in range(self.accumulate):
            y = self.classes(len(x))
            with frozen(self.discriminator):
                loss_g = hinge_g(self.discriminator(self.view(self.generate(y)), y))
                self.manual_backward(loss_g / self.accumulate)
        opt_g.step()

        self.keep()
        self.record(d=loss_d, g=loss_g, on_real=on_real.mean(), on_made=on_made.mean())

    def classes(self, n: int) -> Tensor:
        """Classes (n,), drawn uniformly."""
        return torch.randint(self.task.num_classes, (n,), generator=self.rng, device=self.device)
