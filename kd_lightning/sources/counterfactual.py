"""Counterfactual images: shape, texture and background with independent labels; the image's label is the shape's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kd_lightning.core.user_code import code_of
from kd_lightning.data.batches import Batch
from kd_lightning.data.loader import TensorLoader
from kd_lightning.errors import ConfigError
from kd_lightning.losses.counterfactual import MECHANISMS, compose
from kd_lightning.networks.generators.cgn import shifted
from kd_lightning.sources.context import Context
from kd_lightning.sources.data_free import Rounds
from kd_lightning.sources.mask_operations import Operator, applied
from kd_lightning.sources.pool import made_by, noise_on, obtain_parts
from kd_lightning.store.artifacts import by_content
from kd_lightning.teachers.generator import DrawingTeacher, KeptDrawings

PER_PART = 2000
Drawers = Mapping[str, DrawingTeacher | KeptDrawings]


class Counterfactual:
    """Images of a trained CGN, or of three students of its mechanisms.

    Args:
        mechanisms: ``shape``, ``fg`` and ``bg``, each with a ``generator`` and its ``weights``: a network of latents
            and labels, or one with all three mechanisms.
        latent: length of z, which is independent for each mechanism.
        rounds: batches per epoch of a stream.
        batch_size: images per batch and rank.
        images: size of a pool that is generated once and stored; None for a stream of fresh images.
        drawings: in a stream, number of images per mechanism that are generated once and recombined in every batch;
            None generates them for every batch.
        ratio: counterfactuals per mask.
        labels: of textures and backgrounds: ``independent`` of the shape's and of each other, or ``permuted``, the
            batch's labels in another order, as in CGN's code.
        shift: shift textures cyclically, as in CGN's training.
        mask_operations: operators applied to mask, texture and background before they are combined.
        seed: of the stored images.

    Raises:
        ConfigError: a mechanism is missing, ``images`` is less than ``ratio``, or another argument is out of range.
    """

    version = 1
    needs = frozenset({"task.classification"})
    offers = frozenset({"source.images", "source.index", "source.labels", "source.synthetic"})

    def __init__(
        self,
        *,
        mechanisms: Mapping[str, Mapping[str, Any]],
        latent: int,
        rounds: int,
        batch_size: int,
        images: int | None = None,
        drawings: int | None = None,
        ratio: int = 1,
        labels: Literal["independent", "permuted"] = "independent",
        shift: bool = True,
        mask_operations: Sequence[Operator] = (),
        seed: int = 0,
    ) -> None:
        if set(mechanisms) != set(MECHANISMS):
            raise ConfigError(
                f"source.mechanisms names {', '.join(mechanisms) or 'none'}: expected {', '.join(MECHANISMS)}"
            )
        if not 1 <= ratio <= (images or ratio):
            raise ConfigError(f"source.ratio={ratio}: expected at least 1, and at most source.images={images}")
        if drawings is not None and drawings < 1:
            raise ConfigError(f"source.drawings={drawings}: expected at least 1, or null to draw for every batch")
        if labels not in ("independent", "permuted"):
            raise ConfigError(f"source.labels={labels}: expected independent or permuted")
        self.mechanisms, self.latent, self.rounds, self.batch_size = mechanisms, latent, rounds, batch_size
        self.images, self.drawings, self.ratio, self.labels = images, drawings, ratio, labels
        self.shift, self.mask_operations, self.seed = shift, tuple(mask_operations), seed

    def prepare(self, context: Context) -> TensorLoader | CounterfactualLoader:
        """A loader of labelled images; needs no image of the data.

        Raises:
            TeacherError: weights cannot be read, or hold another network.
        """
        drawers = {
            im: DrawingTeacher(node["generator"], node["weights"], device=context.device)
            for im, node in self.mechanisms.items()
        }
        if self.images is None:
            return CounterfactualLoader(self, self.kept(drawers, context), context)

        def make(number: int, random: np.random.Generator) -> dict[str, Tensor]:
            n = min(PER_PART, total - number * PER_PART)
            x, y = self.draw(drawers, n, context.dataset.num_classes, noise_on(context, random))
            return {"images": x, "labels": y}

        total = self.images // self.ratio * self.ratio
        config = {
            "source": "counterfactual",
            "version": self.version,
            "generators": {im: by_content(node["weights"], context.store.root) for im, node in self.mechanisms.items()},
            **made_by(self, *(node["generator"] for node in self.mechanisms.values())),
            "shape": context.dataset.image_shape,
            "operations": [code_of(type(operator)) for operator in self.mask_operations],
            "mask_operations": [repr(operator) for operator in self.mask_operations],
            "classes": context.dataset.num_classes,
            "images": total,
            **{k: getattr(self, k) for k in ("latent", "ratio", "labels", "shift", "seed")},
            **({"latents": own} if (own := self.with_latents_of_their_own()) else {}),
        }
        parts = obtain_parts(context, config, -(-total // PER_PART), make)
        context.notes["images_synthesised"] = total
        return context.serve(*(torch.cat([part[k] for part in parts]) for k in ("images", "labels")),
                             batch_size=self.batch_size)  # fmt: skip

    def with_latents_of_their_own(self) -> list[str]:
        """Mechanisms whose generator has another latent distribution than N(0, I)."""
        return [im for im, node in self.mechanisms.items() if hasattr(node["generator"], "latents")]

    def kept(self, drawers: Mapping[str, DrawingTeacher], context: Context) -> Drawers:
        """The mechanisms' generators or, with ``drawings``, their stored images."""
        if self.drawings is None:
            return drawers
        rng, classes = torch.Generator(context.device).manual_seed(self.seed), context.dataset.num_classes
        return {
            im: KeptDrawings(drawers[im], im, latent=self.latent, classes=classes, pictures=self.drawings, rng=rng)
            for im in MECHANISMS
        }

    def draw(self, drawers: Drawers, n: int, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] and the labels (N,) of their shapes."""

        shapes = torch.randint(classes, (-(-n // self.ratio),), generator=rng, device=rng.device)
        y = shapes.repeat_interleave(self.ratio)[:n]
        mask = (
            drawers["shape"]
            .sample("shape", drawers["shape"].latents(len(shapes), self.latent, rng), shapes)
            .repeat_interleave(self.ratio, 0)[:n]
        )
        textures = []
        for im in MECHANISMS[1:]:
            if self.labels == "permuted":
                other = y[torch.randperm(n, generator=rng, device=rng.device)]
            else:
                other = torch.randint(classes, (n,), generator=rng, device=rng.device)
            drawn = drawers[im].sample(im, drawers[im].latents(n, self.latent, rng), other)
            textures.append(shifted(drawn, rng) if self.shift else drawn)
        return compose(*applied(self.mask_operations, mask, textures[0], textures[1], rng)).clamp(0, 1), y


class CounterfactualLoader(Rounds):
    """Resumable: each batch depends only on seed, epoch, its number within the epoch and the rank."""

    def __init__(self, source: Counterfactual, drawers: Drawers, context: Context) -> None:
        super().__init__(source.rounds)
        self.source, self.drawers, self.classes = source, drawers, context.dataset.num_classes
        self.seed, self.rank, self.world, self.notes = context.order_seed, context.rank, context.world, context.notes
        self.rng = torch.Generator(context.device)

    def batch(self, number: int) -> Batch:
        """Fresh images with the labels of their shapes."""
        words = np.random.SeedSequence((self.seed, self.epoch, number, self.rank))
        self.rng.manual_seed(int(words.generate_state(1, np.uint64)[0]))
        n = self.source.batch_size
        self.notes["images_synthesised"] = (self.epoch * self.rounds + number + 1) * n * self.world
        return Batch(*self.source.draw(self.drawers, n, self.classes, self.rng))
