"""FS-BBT: black-box few-shot knowledge distillation (Nguyen et al., ECCV 2022).

From a few unlabelled images and a teacher that answers with probabilities. Pairs of images are mixed (MixUp); mixes
that are almost one of their parents are replaced by images of a CVAE trained on the few (``methods/cvae.py``), half of
them from N(0, I) and half from a wider distribution. The teacher is queried once about every image, and the student
learns the answers by soft cross-entropy (``Distill``). Labels, mixed labels and the CVAE's class are not used.

Deviations (paper / authors' code / here):
    * Few images: one set / different ones for CVAE and student / one set, chosen by ``source.seed``.
    * Pairs: two random orders of the few, each repeated / over all repetitions, so an image may be its own partner /
      one order after another, never with itself.
    * Number of images: - / a multiple of the few / any; the CVAE's are not cut to a multiple of the classes.
    * Latents: half normal, half wide / in blocks, so that half of the classes get only normal ones / alternating
      within each class.
    * Images: - / float / 8 bits, as the teacher receives them.
    * Queries: N + M / also the few again for the CVAE, and all test images / N + M.
    * Second MixUp during training, without queries: - / except for CIFAR-100 / ``source.mixup_again``, off; the
      partner is drawn from the same batch. ``experiment=fs_bbt/mnist_paper_code`` has it.
    * Without CVAE (``method=fs_bbt_mixup``): - / no mix is replaced / the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.errors import DataError
from kd_lightning.networks.weights import load_weights
from kd_lightning.sources.context import Context
from kd_lightning.sources.few_shot_queried import kept_pool, pixels
from kd_lightning.sources.pool import made_by
from kd_lightning.store.files import file_digest

Random = np.random.Generator


class Mixup:
    """Only mixes of the few.

    Args:
        a: of Beta(a, a), the distribution of the mixing weights.
    """

    version = 1

    def __init__(self, *, a: float = 1.0) -> None:
        self.a = a

    def sizes(self, images: int) -> list[int]:
        """One part."""
        return [images]

    def __call__(self, context: Context, few: Tensor, images: int, seed: int) -> list[Tensor]:
        """All mixes, made now or read from the store.

        Raises:
            DataError: a single image has no partner.
        """

        def make() -> Mapping[str, Tensor]:
            return {"images": self.make(context, few, images, np.random.default_rng(seed))}

        config = {"expand": self.settings(), "few": pixels(few), "images": images, "seed": seed}
        return [kept_pool(context, config, make)["images"]]

    def settings(self) -> dict[str, Any]:
        """What determines the images, in addition to the few and the seed."""
        kind = {"kind": type(self).__name__, "version": self.version, "a": self.a}
        return kind | made_by(self, getattr(self, "generator", None))

    def make(self, context: Context, few: Tensor, images: int, random: Random) -> Tensor:
        """Mix: uint8 (images, C, H, W)."""
        return mixed(few, *pairs(images, len(few), random), shares(images, self.a, random))


class MixupCvae(Mixup):
    """Mixes of the few, and images of a CVAE that replace those almost equal to one of their parents.

    Args:
        generator: the CVAE's decoder.
        weights: its weights, ``stage:NAME/generator.safetensors`` of an earlier stage or a file.
        a: of Beta(a, a).
        tau: a mix is kept if its weight is in (tau, 1 - tau); the paper's alpha.
        sampling: latents from N(0, I), ``gaussian``, from U(-wide, wide), ``uniform``, or both in turn, ``hybrid``.
        wide: half-width of the uniform distribution.
    """

    def __init__(
        self,
        *,
        generator: Any,
        weights: str,
        a: float = 1.0,
        tau: float = 0.05,
        sampling: Literal["hybrid", "gaussian", "uniform"] = "hybrid",
        wide: float = 3.0,
    ) -> None:
        super().__init__(a=a)
        self.generator, self.weights = generator, weights
        self.tau, self.sampling, self.wide = tau, sampling, wide

    def settings(self) -> dict[str, Any]:
        """As for the mixes, and the decoder."""
        own = {"tau": self.tau, "sampling": self.sampling, "wide": self.wide, "decoder": file_digest(self.weights)}
        return super().settings() | own

    def make(self, context: Context, few: Tensor, images: int, random: Random) -> Tensor:
        """The kept mixes followed by the CVAE's images, uint8 (images, C, H, W).

        Raises:
            TeacherError: the file of weights cannot be read, or holds another decoder.
        """
        load_weights(self.generator, self.weights)
        decoder = self.generator.eval().requires_grad_(False).to(context.device)
        (first, second), share = pairs(images, len(few), random), shares(images, self.a, random)
        stays = (share > self.tau + 1e-9) & (share < 1 - self.tau - 1e-9)  # weights have two decimals
        z, label = latents(
            int((~stays).sum()), decoder.latent, decoder.num_classes, random, sampling=self.sampling, wide=self.wide
        )
        return torch.cat([mixed(few, first[stays], second[stays], share[stays]), decoded(decoder, z, label)])


def pairs(images: int, few: int, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two parents, (images,) each: each of the few equally often on each side, none with itself.

    Raises:
        DataError: there is only one image.
    """
    if few < 2:
        raise DataError("MixUp needs at least two images: raise source.per_class")
    first, second = [], []
    for _ in range(-(-images // few)):
        one, other = random.permutation(few), random.permutation(few)
        same = np.flatnonzero(one == other)
        if len(same) == 1:
            same = np.append(same, (same[0] + 1) % few)
        other[same] = np.roll(other[same], 1)
        first.append(one)
        second.append(other)
    return np.concatenate(first)[:images], np.concatenate(second)[:images]


def shares(images: int, a: float, random: Random) -> np.ndarray:
    """Mixing weights (images,) ~ Beta(a, a), rounded to two decimals."""
    return random.beta(a, a, images).round(2)


def mixed(few: Tensor, first: np.ndarray, second: np.ndarray, share: np.ndarray) -> Tensor:
    """Weighted mean share * first + (1 - share) * second, uint8; (M, C, H, W) from (N, C, H, W)."""
    made = torch.empty(len(share), *few.shape[1:], dtype=torch.uint8)
    for begin in range(0, len(share), 1000):
        rows = slice(begin, begin + 1000)
        weight = torch.from_numpy(share[rows]).float().view(-1, 1, 1, 1)
        one, other = (few[torch.from_numpy(side[rows])].float() for side in (first, second))
        made[rows] = (weight * one + (1 - weight) * other).round().to(torch.uint8)
    return made


def latents(
    images: int, latent: int, num_classes: int, random: Random, *, sampling: str = "hybrid", wide: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Latents z (images, latent) and classes (images,): classes alternate, and within each the distributions of z."""
    number = np.arange(images)
    near = random.standard_normal((images, latent))
    far = random.uniform(-wide, wide, (images, latent))
    chosen = {"gaussian": number < 0, "uniform": number >= 0, "hybrid": number // num_classes % 2 == 1}[sampling]
    z = np.where(chosen[:, None], far, near)
    return torch.from_numpy(z).float(), torch.from_numpy(number % num_classes)


@torch.no_grad()
def decoded(decoder: nn.Module, z: Tensor, label: Tensor) -> Tensor:
    """The decoder's images for latents and classes, uint8 (N, C, H, W) on the CPU."""
    device = next(decoder.parameters()).device
    made = [decoder(*(part.to(device) for part in rows)) for rows in zip(z.split(500), label.split(500), strict=True)]
    return (torch.cat(made) * 255).round().to(torch.uint8).cpu()
