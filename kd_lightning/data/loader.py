"""Batches from tensors on the device or in a file: shuffled, sharded and augmented, and resumable at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_lightning.core.mapped import is_mapped, let_go
from kd_lightning.data.batches import Batch
from kd_lightning.data.joint import moves_labels, refuse_apart
from kd_lightning.errors import ConfigError, DataError

Augmentation = Callable[..., Any]
Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


class TensorLoader:
    """A loader for data sets that fit in memory, or whose images are mapped from a file.

    The order of a pass over the set depends on the seed, the epoch and the number of the pass in that epoch; the
    augmentation of a batch depends on these, the batch's number and the rank. So the state is a few numbers, and
    the state saved by rank 0 is valid for all ranks.

    When shuffling, ranks take every ``world``-th place of one common order and get equally many images: where
    ``world`` does not divide the set, a few are used twice or, with ``drop_last``, left out. Without shuffling
    each image is used exactly once, by one rank.

    The first batch of an ``iter`` starts a new pass, whether the last one was finished or not; after
    ``load_state_dict`` it is the batch after the last one drawn. (Lightning never exhausts a loader, calls
    ``iter`` twice before some first batches, and saves the state after the batch was used.) Resume with the
    same seed: Lightning loads the state only of an unfinished epoch.

    Args:
        images: uint8 (N,C,H,W).
        labels: (N,...) integer labels or label maps, returned as int64, or float targets; or None.
        batch_size: images per batch and rank.
        shuffle: use a new order in each pass.
        augment: augmentations of x, or of x and label maps (see :mod:`kd_lightning.data.joint`), in this order.
        answers: (N,K) stored answers of a teacher.
        mix: maps a batch's images and answers to mixed ones before the augmentation; batches then have no labels.
        seed: of order and augmentation, at least 0.
        rank: of this process.
        world: number of processes.
        drop_last: leave out the last batch if it is smaller.
        device: where the tensors are kept and batches are made; mapped images stay in their file.

    Raises:
        DataError: no images.
        ConfigError: ``drop_last`` would leave no batch, or an augmentation would move images and not their label maps.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        batch_size: int,
        shuffle: bool,
        augment: Sequence[Augmentation] = (),
        answers: Tensor | None = None,
        mix: Mix | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(f"images must be uint8 (N,C,H,W), got {images.dtype} {tuple(images.shape)}")
        for other in (labels, answers):
            if other is not None and len(other) != len(images):
                raise ValueError(f"{len(images)} images, but {len(other)} labels or answers")
        if labels is not None and labels.dim() == 3:
            refuse_apart(augment)
        if len(images) == 0:
            raise DataError("a loader needs at least one image, but the set is empty")
        self.images, self.labels, self.answers = images, labels, answers
        self.streamed = is_mapped(images)
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.augment, self.mix = tuple(augment), mix
        self.seed, self.rank, self.world = seed, rank, world
        self.device = torch.device(device)
        self.epoch = self.turn = self.cursor = 0
        self._resumed = False
        if drop_last and len(self) == 0:
            raise ConfigError(
                f"a batch of {batch_size} on each of {world} device(s) is more than the {len(images)} images "
                "there are: choose a smaller batch size"
            )

    def to(self, device: torch.device | str) -> TensorLoader:
        """Move the tensors to ``device``, where batches are made."""
        self.device = torch.device(device)
        self.images = self.images if self.streamed else self.images.to(self.device)
        self.labels = None if self.labels is None else self.labels.to(self.device)
        self.answers = None if self.answers is None else self.answers.to(self.device)
        return self

    def __len__(self) -> int:
        """Batches of one epoch on this rank."""
        share = self._share()
        return share // self.batch_size if self.drop_last else -(-share // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.to(self.device)
        if self.cursor >= len(self) or (self.cursor > 0 and not self._resumed):
            self.turn, self.cursor = self.turn + 1, 0
        order, rng = self._order().to(self.device), torch.Generator(self.device)
        while self.cursor < len(self):
            number, self.cursor, self._resumed = self.cursor, self.cursor + 1, False
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self._batch(index, rng.manual_seed(mixed_seed(2, *self._pass(), number, self.rank)))

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``sampler.set_epoch``."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` unless already in it.

        Lightning calls this before each epoch, also after resuming from the end of one, where it does not load
        the saved state.
        """
        if epoch != self.epoch:
            self.epoch, self.turn, self.cursor, self._resumed = epoch, 0, 0, False

    def state_dict(self) -> dict[str, int]:
        """Seed, epoch, pass in it, batches drawn in the pass, and the sizes to check when loading."""
        place = {"seed": self.seed, "epoch": self.epoch, "turn": self.turn, "cursor": self.cursor}
        return place | self._shape()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, at the next ``iter``, with the batch after the last one drawn.

        Raises:
            ConfigError: number of images, batch size or number of processes differ.
        """
        before = {key: state[key] for key in self._shape()}
        if before != self._shape():
            raise ConfigError(
                f"cannot resume in the middle of an epoch with different batches: saved with {before}, now "
                f"{self._shape()}. Restore those settings, or start over with artifacts.reuse=false"
            )
        self.seed, self.epoch = state["seed"], state["epoch"]
        self.turn, self.cursor = state["turn"], state["cursor"]
        self._resumed = True

    def _shape(self) -> dict[str, int]:
        return {"images": len(self.images), "batch_size": self.batch_size, "world": self.world}

    def _share(self) -> int:
        if not self.shuffle:
            return len(range(self.rank, len(self.images), self.world))
        return len(self.images) // self.world if self.drop_last else -(-len(self.images) // self.world)

    def _order(self) -> Tensor:
        places = torch.arange(self.rank, self.rank + self._share() * self.world, self.world)
        if not self.shuffle:
            return places
        generator = torch.Generator().manual_seed(mixed_seed(1, *self._pass()))
        return torch.randperm(len(self.images), generator=generator)[places % len(self.images)]

    def _pass(self) -> tuple[int, int, int]:
        return self.seed, self.epoch, self.turn

    def _batch(self, index: Tensor, rng: torch.Generator) -> Batch:
        x = self.images.index_select(0, index.to(self.images.device)).to(self.device).float().div_(255)
        if self.streamed:
            let_go(self.images)
        y = None if self.labels is None else self.labels.index_select(0, index)
        if y is not None and not y.is_floating_point():
            y = y.long()
        t = None if self.answers is None else self.answers.index_select(0, index)
        if self.mix is not None and t is not None:
            x, t = self.mix(x, t, rng)
            y = None
        for augmentation in self.augment:
            if moves_labels(augmentation):
                x, y = augmentation(x, rng, y)
            else:
                x = augmentation(x, rng)
        return Batch(x, y, t, index)


def mixed_seed(*words: int) -> int:
    """One well-mixed 64-bit seed from several small numbers."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
