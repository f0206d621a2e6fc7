"""Two streams side by side: their lengths, orders, ranks, and going on where a killed run stopped."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.data.batches import Batch, StreamsBatch
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.data.streams import StreamsLoader
from kd_lightning.errors import DataError


def one(n: int, batch_size: int, *, side: int = 3, **options: int) -> TensorLoader:
    images = torch.arange(n * side * side).remainder(256).to(torch.uint8).view(n, 1, side, side)
    return TensorLoader(images, torch.arange(n), batch_size=batch_size, shuffle=True, drop_last=True, **options)


def streams(labelled: int = 6, unlabelled: int = 22, **options: int) -> StreamsLoader:
    return StreamsLoader(one(labelled, 2, **options), one(unlabelled, 4, **options))


def places(batches: list[StreamsBatch]) -> list[list[list[int]]]:
    return [[part.index.tolist() for part in batch] for batch in batches]


def test_an_epoch_is_as_long_as_the_longer_stream_and_the_shorter_begins_again() -> None:
    batches = list(streams())
    assert len(batches) == len(streams()) == 5
    labelled = [i for batch in batches for i in batch.labelled.index.tolist()]
    assert sorted(labelled[:6]) == list(range(6))
    assert len(labelled) == 10
    assert len({i for batch in batches for i in batch.unlabelled.index.tolist()}) == 20
    assert all(batch.unlabelled.y is None for batch in batches)
    assert all(torch.equal(batch.labelled.y, batch.labelled.index) for batch in batches)
    assert len(list(StreamsLoader(one(6, 2), one(22, 4), batches=9))) == 9


def test_streams_of_equal_size_are_in_different_orders() -> None:
    batches = list(StreamsLoader(one(20, 4), one(20, 4)))
    assert places(batches) != [[unlabelled, labelled] for labelled, unlabelled in places(batches)]
    assert any(batch.labelled.index.tolist() != batch.unlabelled.index.tolist() for batch in batches)


@pytest.mark.parametrize("drawn", [1, 2, 3, 4, 5])
def test_it_goes_on_with_the_next_batch_of_both(drawn: int) -> None:
    whole, broken, resumed = streams(seed=3), streams(seed=3), streams(seed=3)
    expected = []
    for epoch in (0, 1):
        whole.set_epoch(epoch)
        expected += list(whole)
    iterator = iter(broken)
    for _ in range(drawn):
        next(iterator)
    resumed.load_state_dict(broken.state_dict())
    rest = list(resumed) if drawn < 5 else []
    resumed.set_epoch(1)
    assert places(rest + list(resumed)) == places(expected[drawn:])


def test_ranks_see_different_images_of_both() -> None:
    first, second = (list(streams(24, 48, rank=rank, world=2)) for rank in (0, 1))
    for part in ("labelled", "unlabelled"):
        seen = [{i for batch in rank for i in getattr(batch, part).index.tolist()} for rank in (first, second)]
        assert not seen[0] & seen[1]


def test_images_of_two_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(1, 3, 3\), images without labels \(1, 4, 4\).*data.size"):
        StreamsLoader(one(6, 2), one(6, 2, side=4))


def test_both_are_rounded_for_a_teacher_that_is_queried() -> None:
    x = torch.tensor([0.1234]).view(1, 1, 1, 1)
    batch = Images(None, None, eight_bits=True).on_after_batch_transfer(StreamsBatch(Batch(x, None), Batch(x, None)), 0)
    assert [float(part.x * 255) for part in batch] == pytest.approx([31.0, 31.0])
