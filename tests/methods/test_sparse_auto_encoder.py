"""The sparse auto-encoder learns the same of an image whether its label or the label's place is told."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from toy import trainer

from kd_lightning.core.tasks import Regression
from kd_lightning.data.loader import Batch
from kd_lightning.data.module import Images
from kd_lightning.methods.generators.sparse_auto_encoder import SparseCode
from kd_lightning.networks.features import SparseAutoEncoder
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.vicinal import VicinalBatch

TASK = Regression(low=0.0, high=60.0, unit="years")


class Once:
    """A loader of one batch."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield self.batch


def losses(batch: Any) -> dict[str, float]:
    """Of one step."""
    torch.manual_seed(0)
    net = SparseAutoEncoder(channels=1, size=8, width=4, features=16, hidden=(8,))
    made = SparseCode(
        student=Normalized(net, mean=[0.5], std=[0.5]),
        teacher=None,
        task=TASK,
        optimizer=partial(torch.optim.SGD, lr=0.01),
    )
    made.train()
    trainer(1).fit(made, Images(Once(batch), None))
    return {k: v for k, v in made.latest.items() if k.startswith("train/")}


def test_places_of_drawn_labels_count_as_the_labels() -> None:
    x, years = torch.rand(6, 1, 8, 8), torch.tensor([1.0, 7.0, 30.0, 59.0, 60.0, 12.0])
    places = years / 60
    drawn = VicinalBatch(x, places, places, places, torch.ones(6), torch.ones(6), places)
    found = losses(drawn)
    assert found["train/label"] > 0
    assert losses(Batch(x, years)) == pytest.approx(found, rel=1e-4)
