"""FS-BBT: black-box few-shot knowledge distillation (Nguyen et al., ECCV 2022).

A few unlabelled images and a teacher that tells probabilities. Pairs of them are mixed (MixUp); mixes that are nearly
one of their parents give way to images of a CVAE that has learned the few (``methods/cvae.py``), half of them from the
latents it knows and half from wider ones. The teacher is asked about every image once, and the student learns the
answers by soft cross-entropy (``Distill``). Labels, mixed labels and the CVAE's intended class are not used.

Deviations (paper / authors' code / here):
    * Few images: one set / others for the CVAE than for the student / one set, chosen by ``source.seed``.
    * Pairs: two random orders of the few, each repeated / over all repetitions, so an image may meet itself / one
      order after another, never with itself.
    * Images to make: - / a multiple of the few / any number; the CVAE's are not cut to a multiple of the classes.
    * Latents: half normal, half wide / in blocks, so that half of the classes see normal ones alone / taking turns
      within each class.
    * Images: - / float / 8 bits, those that the teacher was asked about.
    * Questions: N + M / once more the few for the CVAE, and all test images / N + M.
    * Second MixUp while training, without asking: - / except for CIFAR-100 / ``source.mixup_again``, off; the partner
      is drawn from the same batch. ``experiment=fs_bbt/mnist_paper_code`` has it.
    * Without CVAE (``method=fs_bbt_mixup``): - / no mix gives way / the same.
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
from kd_lightning.store.artifacts import file_digest

Random = np.random.Generator


class Mixup:
    """Mixes of the few, and nothing else.

    Args:
        a: of Beta(a, a), from which the weights come.
    """

    version = 1

    def __init__(self, *, a: float = 1.0) -> None:
        self.a = a

    def sizes(self, images: int) -> list[int]:
        """One part."""
        return [images]

    def __call__(self, context: Context, few: Tensor, images: int, seed: int) -> list[Tensor]:
        """All of them, made now or earlier.

        Raises:
            DataError: a single image has no partner.
        """

        def make() -> Mapping[str, Tensor]:
            return {"images": self.make(context, few, images, np.random.default_rng(seed))}

        config = {"expand": self.settings(), "few": pixels(few), "images": images, "seed": seed}
        return [kept_pool(context, config, make)["images"]]

    def settings(self) -> dict[str, Any]:
        """What determines the images, beside the few and the seed."""
        return {"kind": type(self).__name__, "version": self.version, "a": self.a}

    def make(self, context: Context, few: Tensor, images: int, random: Random) -> Tensor:
        """Uint8 (images, C, H, W)."""
        return mixed(few, *pairs(images, len(few), random), shares(images, self.a, random))


class MixupCvae(Mixup):
    """Mixes of the few, and images of a CVAE in the place of those that are nearly one of their parents.

    Args:
        generator: the CVAE's decoder.
        weights: its weights, ``stage:NAME/generator.safetensors`` of an earlier stage or a file.
        a: of Beta(a, a).
        tau: a mix stays if its weight is in (tau, 1 - tau); the paper's alpha.
        sampling: latents from N(0, I), ``gaussian``, from U(-wide, wide), ``uniform``, or both in turn, ``hybrid``.
        wide: see there.
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
        """Those of the mixes, and the decoder."""
        own = {"tau": self.tau, "sampling": self.sampling, "wide": self.wide, "decoder": file_digest(self.weights)}
        return super().settings() | own

    def make(self, context: Context, few: Tensor, images: int, random: Random) -> Tensor:
        """First the mixes that stay, then the CVAE's.

        Raises:
            TeacherError: the file of weights cannot be read, or holds another decoder.
        """
        load_weights(self.generator, self.weights)
        decoder = self.generator.eval().requires_grad_(False).to(context.device)
        (first, second), share = pairs(images, len(few), random), shares(images, self.a, random)
        stays = (share > self.tau + 1e-9) & (share < 1 - self.tau - 1e-9)  # two decimals
        z, label = latents(
            int((~stays).sum()), decoder.latent, decoder.num_classes, random, sampling=self.sampling, wide=self.wide
        )
        return torch.cat([mixed(few, first[stays], second[stays], share[stays]), decoded(decoder, z, label)])


def pairs(images: int, few: int, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Two parents (images,) for each mix: every one of the few equally often on each side, none with itself.

    Raises:
        DataError: there is one image only.
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
    """Lambda ~ Beta(a, a), rounded to two decimals, (images,)."""
    return random.beta(a, a, images).round(2)


def mixed(few: Tensor, first: np.ndarray, second: np.ndarray, share: np.ndarray) -> Tensor:
    """Share * first + (1 - share) * second, uint8 of uint8; (M, C, H, W) of (N, C, H, W)."""
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
    """Z (images, latent) and its class (images,): classes take turns, and within each the two ways to draw z."""
    number = np.arange(images)
    near = random.standard_normal((images, latent))
    far = random.uniform(-wide, wide, (images, latent))
    chosen = {"gaussian": number < 0, "uniform": number >= 0, "hybrid": number // num_classes % 2 == 1}[sampling]
    z = np.where(chosen[:, None], far, near)
    return torch.from_numpy(z).float(), torch.from_numpy(number % num_classes)


@torch.no_grad()
def decoded(decoder: nn.Module, z: Tensor, label: Tensor) -> Tensor:
    """What the decoder makes of latents and classes, uint8 (N, C, H, W) on the CPU."""
    device = next(decoder.parameters()).device
    made = [decoder(*(part.to(device) for part in rows)) for rows in zip(z.split(500), label.split(500), strict=True)]
    return (torch.cat(made) * 255).round().to(torch.uint8).cpu()
