"""Images of a trained generator: fresh ones in every batch, from a frozen network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.core.tasks import Classification
from kd_lightning.core.user_code import code_of
from kd_lightning.data.batches import Batch
from kd_lightning.errors import ConfigError
from kd_lightning.networks.weights import load_weights
from kd_lightning.sources.context import Context
from kd_lightning.sources.data_free import Rounds
from kd_lightning.sources.pool import checked


class Generated:
    """Images of a frozen generator in eval mode, from z ~ N(0, I).

    For a method that trains on labels, an image's label is the teacher's class. Its answers are then handed on with the
    images, and it is not asked for them again.

    Args:
        generator: latents (N, latent) to images (N, C, H, W) in data units.
        weights: its weights, ``stage:NAME/generator.safetensors`` of an earlier stage or a file.
        rounds: batches per epoch.
        batch_size: images per batch and rank.
        latent: length of z.
    """

    offers = frozenset({"source.images", "source.synthetic", "source.labels"})

    def __init__(self, *, generator: nn.Module, weights: str, rounds: int, batch_size: int, latent: int) -> None:
        self.generator, self.weights = generator, weights
        self.rounds, self.batch_size, self.latent = rounds, batch_size, latent

    def prepare(self, context: Context) -> GeneratedLoader:
        """A resumable loader of generated images; needs no image of the data.

        Raises:
            TeacherError: the file cannot be read, or holds another generator.
            ConfigError: there is nobody to label the images, or the labels are no classes.
        """
        if "source.labels" in context.needs:
            if context.teacher is None:
                raise ConfigError(
                    "source=generated: the teacher labels the images, but teacher=none: choose one with teacher=NAME, "
                    "or set method.label=0"
                )
            if not isinstance(context.dataset.task, Classification):
                raise ConfigError("source=generated labels images by classes: set method.label=0 for other tasks")
        load_weights(self.generator, self.weights)
        self.generator.eval().requires_grad_(False)
        return GeneratedLoader(context.placed(self.generator), self.rounds, (self.batch_size, self.latent), context)


class GeneratedLoader(Rounds):
    """Resumable: each batch depends only on seed, epoch, its number within the epoch and the rank."""

    def __init__(self, generator: nn.Module, rounds: int, shape: tuple[int, int], context: Context) -> None:
        super().__init__(rounds)
        self.generator, self.shape = generator, shape
        self.seed, self.notes, self.autocast = context.order_seed, context.notes, context.autocast()
        self.rank, self.world = context.rank, context.world
        self.rng = torch.Generator(context.device)
        self.teacher = context.teacher if "source.labels" in context.needs else None

    @torch.no_grad()
    def batch(self, number: int) -> Batch:
        """Fresh images, with labels and answers if they are wanted."""
        self.notes["images_synthesised"] = (self.epoch * self.rounds + number + 1) * self.shape[0] * self.world
        with self.autocast:
            x = self.generator(self.latents(number))
        # those of this package may end in a batch norm, as their papers' do; a check waits for the device
        if number == 0 and code_of(type(self.generator)) is not None:
            checked(x, self.generator)
        x = x.float()
        if self.teacher is None:
            return Batch(x, None)
        with self.autocast:
            answers = self.teacher(x)
        return Batch(x, answers.argmax(1), answers)

    def latents(self, number: int) -> Tensor:
        """Latents z ~ N(0, I) of a batch, (batch_size, latent)."""
        words = np.random.SeedSequence((self.seed, self.epoch, number, self.rank))
        self.rng.manual_seed(int(words.generate_state(1, np.uint64)[0]))
        return torch.randn(self.shape, device=self.rng.device, generator=self.rng)
