"""What a source receives to prepare its batches."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.loader import Augmentation, Mix, TensorLoader
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store


@dataclass
class Context:
    """The argument of ``source.prepare``, which returns a sized iterable of batches.

    Args:
        dataset: the available images and labels.
        teacher: a :class:`FrozenTeacher` or :class:`QueryTeacher`, or None.
        store: holds pools and paid answers.
        keys: digests of data and teacher, which enter the keys of whatever the source stores.
        mean: per channel, in data units.
        std: per channel, in data units.
        order_seed: seed of the order in which a fit sees the images.
        rank: of this process among ``world``.
        world: number of processes.
        device: of the batches.
        precision: of the fit, as Lightning names it.
        memory_format: of the fit's networks, ``contiguous`` or ``channels_last``.
        needs: of the method that will train on the source, such as ``teacher``.
        rounds: per epoch, if that method sets them.
        notes: filled by the source, for the fit's report.
    """

    dataset: Dataset
    teacher: Any
    store: Store
    keys: dict[str, str]
    mean: list[float]
    std: list[float]
    order_seed: int = 0
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    precision: str = "32-true"
    memory_format: str = "contiguous"
    needs: Set[str] = frozenset()
    rounds: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def autocast(self) -> torch.autocast:
        """The autocast context of the fit's steps, for networks that a source runs."""
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)
        return torch.autocast(torch.device(self.device).type, half, enabled=half is not None)

    def placed(self, net: nn.Module) -> nn.Module:
        """``net`` on the fit's device and in its memory format."""
        layout = torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format
        return net.to(self.device, memory_format=layout)  # type: ignore[call-overload]

    def real(self, *, labels: bool = True) -> Split:
        """The training images.

        Args:
            labels: whether they need labels.

        Raises:
            DataError: there are none, or they have no labels.
        """
        if self.dataset.train is None:
            raise DataError(
                f"data={self.dataset.name} has no training images, but this source needs them. "
                "Use a method that generates its own (method=dafl), or give the data a train folder"
            )
        if labels and not self.dataset.train.labelled:
            raise DataError(
                f"data={self.dataset.name} has no labels, and these are trained on: method=kd method.label=0 needs the "
                "teacher's answers only, data=image_folder and data=table read labels"
            )
        return self.dataset.train

    def serve(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        answers: Tensor | None = None,
        mix: Mix | None = None,
        batch_size: int,
        augment: Sequence[Augmentation] = (),
        whole: bool = True,
    ) -> TensorLoader:
        """A shuffling loader of uint8 images (N, C, H, W) for this rank; ``whole`` drops the incomplete last batch."""
        return TensorLoader(
            images,
            labels,
            answers=answers,
            mix=mix,
            batch_size=batch_size,
            shuffle=True,
            augment=augment,
            seed=self.order_seed,
            rank=self.rank,
            world=self.world,
            drop_last=whole and len(images) >= batch_size * self.world,
            device=self.device,
        )
