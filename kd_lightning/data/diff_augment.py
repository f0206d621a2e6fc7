"""DiffAugment (Zhao et al., NeurIPS 2020, arXiv 2006.10738): differentiable augmentation for a discriminator.

Real and generated images are augmented in the same way, with different random values for every image, so that a
discriminator cannot memorise few real images and a generator does not imitate the augmentation.

Deviations (paper / authors' code / here):
    * Space: - / images in [-1, 1] / in [0, 1], with half the brightness; saturation and contrast do not depend on it.
    * Fill of shifted and cut out parts: black / 0, which is grey in [-1, 1] / ``fill``, grey.
    * Cutout: - / its centre is anywhere in the image, so that a part may lie outside / the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class DiffAugment:
    """Augments images (N, C, H, W) in [0, 1]; results may leave that range.

    Args:
        colour: brightness + U(-0.25, 0.25), saturation * U(0, 2) for RGB images, contrast * U(0.5, 1.5).
        translation: largest shift, as a fraction of height and width; 0 for none.
        cutout: sides of the part to cut out, as a fraction of height and width; 0 for none.
        fill: value of shifted-in and cut out pixels.
    """

    colour: bool = True
    translation: float = 0.125
    cutout: float = 0.5
    fill: float = 0.5

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augment every image differently; ``generator``, on the images' device, is the source of randomness."""
        if self.colour:
            x = self._coloured(x, generator)
        if self.translation:
            x = self._shifted(x, generator)
        if self.cutout:
            x = self._cut(x, generator)
        return x

    def _coloured(self, x: Tensor, generator: torch.Generator) -> Tensor:
        brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, generator=generator, device=x.device)
        x = x + (brightness - 0.5) / 2
        if x.shape[1] > 1:
            grey = x.mean(1, keepdim=True)
            x = grey + (x - grey) * (2 * saturation)
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (x - mean) * (contrast + 0.5)

    def _shifted(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        index = []
        for side in (height, width):
            most = round(side * self.translation)
            shift = torch.randint(-most, most + 1, (n, 1), generator=generator, device=x.device)
            # index 0 is the fill, padded by one pixel on either side: clamp indices further out to it
            index.append((torch.arange(1, side + 1, device=x.device) + shift).clamp(0, side + 1))
        rows, columns = index
        padded = F.pad(x, (1, 1, 1, 1), value=self.fill)
        places = rows[:, :, None] * (width + 2) + columns[:, None, :]
        places = places.flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return padded.flatten(2).gather(2, places).view_as(x)

    def _cut(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        inside = []
        for side in (height, width):
            cut = round(side * self.cutout)
            centre = torch.randint(side + 1 - cut % 2, (n, 1), generator=generator, device=x.device)
            first = centre - cut // 2
            places = torch.arange(side, device=x.device)
            inside.append((places >= first) & (places < first + cut))
        hole = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
        return x.masked_fill(hole, self.fill)
