"""A few labels: which images they are of, what the method sees of the others, and what cannot be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_sources import context

from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import DataError
from kd_lightning.sources.label_spreading import SpreadLabels
from kd_lightning.sources.labelled_and_unlabelled import LabelledAndUnlabelled
from kd_lightning.sources.real import FewShot


def source(**settings: Any) -> LabelledAndUnlabelled:
    return LabelledAndUnlabelled(**{"per_class": 2, "batch_size": 6, "unlabelled_batch_size": 5, **settings})


def pixels(x: torch.Tensor) -> list[int]:
    return (x.flatten() * 255).round().int().tolist()


def test_the_labelled_ones_are_those_of_few_shot_and_the_others_have_no_label(tmp_path: Path) -> None:
    batches = list(source(seed=3).prepare(context(tmp_path)))
    assert len(batches) == 6  # a pass over the thirty without labels
    few = next(iter(FewShot(per_class=2, batch_size=6, seed=3).prepare(context(tmp_path))))
    for batch in batches:
        assert sorted(pixels(batch.labelled.x)) == sorted(pixels(few.x))
        assert [p % 3 for p in pixels(batch.labelled.x)] == batch.labelled.y.tolist()
        assert batch.unlabelled.y is None
    assert sorted(p for batch in batches for p in pixels(batch.unlabelled.x)) == list(range(30))


def test_the_rest_leaves_the_labelled_ones_out(tmp_path: Path) -> None:
    batches = list(source(unlabelled="rest", unlabelled_batch_size=4).prepare(context(tmp_path)))
    labelled = set(pixels(batches[0].labelled.x))
    assert {p for batch in batches for p in pixels(batch.unlabelled.x)} == set(range(30)) - labelled
    with pytest.raises(DataError, match=r"source.per_class=10 labels all 30 .* source.unlabelled=all"):
        source(unlabelled="rest", per_class=10).prepare(context(tmp_path))
    assert len(source(per_class=10, batch_size=2).prepare(context(tmp_path))) == 6


def test_more_labels_than_a_class_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source\.per_class=11, but class a has 10.*source\.per_class=10 or less"):
        source(per_class=11).prepare(context(tmp_path))


@pytest.mark.parametrize("kind", [source, lambda: SpreadLabels(per_class=2, batch_size=4)])
def test_a_class_without_any_image(kind: Any, tmp_path: Path) -> None:
    images = torch.zeros(20, 1, 1, 1, dtype=torch.uint8)
    data = Dataset("toy", ["a", "b", "c"], Split(images, torch.arange(20) % 2), None, None, "none", "none")
    with pytest.raises(DataError, match=r"class c has no training image, .*leave the class out"):
        kind().prepare(context(tmp_path, dataset=data))


def test_labels_spread_to_their_neighbours(tmp_path: Path) -> None:
    """Three heaps of twenty images: one label each is enough."""
    labels = torch.arange(60) % 3
    images = (
        (80 * labels[:, None].repeat(1, 16) + torch.randint(20, (60, 16), generator=torch.Generator().manual_seed(0)))
        .to(torch.uint8)
        .view(60, 1, 4, 4)
    )
    data = Dataset("toy", ["a", "b", "c"], Split(images, labels), None, None, "none", "none")
    at = context(tmp_path, dataset=data)
    loader = SpreadLabels(per_class=1, neighbours=15, batch_size=60).prepare(at)
    assert torch.equal(loader.labels, labels)
    assert at.notes["spread_labels_right"] == 1.0
    mixed = Split(images, labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))])
    wrong = context(tmp_path, dataset=Dataset("toy", ["a", "b", "c"], mixed, None, None, "none", "none"))
    SpreadLabels(per_class=1, neighbours=15, batch_size=60).prepare(wrong)
    assert wrong.notes["spread_labels_right"] < 0.7


def test_images_that_no_label_reaches_are_left_out(tmp_path: Path) -> None:
    """Three heaps of twenty, of which two are of one class: its only label lies in one of them."""
    heap = torch.arange(60) % 3
    drawn = torch.randint(20, (60, 16), generator=torch.Generator().manual_seed(0))
    images = (80 * heap[:, None] + drawn).to(torch.uint8).view(60, 1, 4, 4)
    data = Dataset("toy", ["a", "b"], Split(images, heap % 2), None, None, "none", "none")
    at = context(tmp_path, dataset=data)
    loader = SpreadLabels(per_class=1, neighbours=15, batch_size=40).prepare(at)
    assert len(loader.images) == 40
    assert at.notes["spread_labels_right"] == 1.0
    assert at.notes["spread_labels_missing"] == 20
