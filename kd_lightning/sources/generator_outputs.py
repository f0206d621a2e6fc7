"""The answers of a generator used as a teacher: images of one mechanism, with their latents and labels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.data.loader import TensorLoader
from kd_lightning.sources.context import Context
from kd_lightning.sources.pool import made_by, noise_on, obtain_parts
from kd_lightning.store.artifacts import by_content
from kd_lightning.teachers.generator import DrawingTeacher

PER_PART = 1000


class Drawn:
    """Pairs of (latents, label) and image, queried once and stored; an interrupted pool is resumed.

    A student needs only the stored pairs: no real image and no teacher.

    Args:
        generator: the teacher, see :class:`~kd_lightning.teachers.generator.DrawingTeacher`.
        weights: its weights, ``stage:NAME/generator.safetensors`` or a file.
        im: the mechanism, ``shape``, ``fg`` or ``bg``.
        latent: length of z, from N(0, I) or the teacher's own latent distribution.
        pairs: number of pairs, with alternating classes.
        batch_size: images per batch and rank.
        seed: of the latents.
    """

    version = 1
    offers = frozenset({"source.images", "source.labels", "source.latents"})

    def __init__(
        self,
        *,
        generator: nn.Module,
        weights: str,
        im: Literal["shape", "fg", "bg"],
        latent: int,
        pairs: int,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        self.generator, self.weights, self.im, self.latent = generator, weights, im, latent
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed

    def prepare(self, context: Context) -> TensorLoader:
        """Query, or read stored pairs; batches hold the latents in place of answers.

        Raises:
            TeacherError: the weights cannot be read, or an answer is not an image.
        """
        classes = context.dataset.num_classes
        teacher: list[DrawingTeacher] = []

        def make(number: int, random: np.random.Generator) -> dict[str, Tensor]:
            if not teacher:
                teacher.append(DrawingTeacher(self.generator, self.weights, device=context.device))
            rng = noise_on(context, random)
            places = torch.arange(self.pairs)[number * PER_PART : (number + 1) * PER_PART]
            z = teacher[0].latents(len(places), self.latent, rng)
            y = (places % classes).to(z.device)
            return {"images": teacher[0].sample(self.im, z, y), "labels": y, "latents": z}

        config = {
            "source": "drawn",
            "version": self.version,
            "generator": by_content(self.weights, context.store.root),
            **made_by(self, self.generator),
            "shape": context.dataset.image_shape,
            "classes": classes,
            **{k: getattr(self, k) for k in ("im", "latent", "pairs", "seed")},
            **({"latents": "its own"} if hasattr(self.generator, "latents") else {}),
        }
        parts = obtain_parts(context, config, -(-self.pairs // PER_PART), make)
        images, labels, latents = (torch.cat([part[k] for part in parts]) for k in ("images", "labels", "latents"))
        context.notes["queries"] = self.pairs
        return context.serve(images, labels, answers=latents, batch_size=self.batch_size)
