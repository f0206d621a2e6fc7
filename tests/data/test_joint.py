"""Augmentations move images and label maps together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_lightning.data.augment import HorizontalFlip
from kd_lightning.data.joint import CropTogether, FlipTogether
from kd_lightning.data.loader import TensorLoader
from kd_lightning.errors import ConfigError


def pairs(n: int = 6, high: int = 10, wide: int = 14) -> tuple[Tensor, Tensor]:
    """Images whose pixels are their own label maps, over 255."""
    labels = torch.randint(255, (n, high, wide), generator=torch.Generator().manual_seed(0))
    return labels[:, None] / 255, labels


@pytest.mark.parametrize("augmentation", [FlipTogether(), CropTogether((4, 6)), CropTogether(5)])
def test_an_image_stays_beneath_its_labels(augmentation: FlipTogether | CropTogether) -> None:
    x, y = pairs()
    moved, labels = augmentation(x, torch.Generator().manual_seed(1), y)
    assert labels is not None
    assert torch.allclose(moved[:, 0] * 255, labels.float(), atol=1e-3)
    assert labels.dtype == torch.int64
    without, nothing = augmentation(x, torch.Generator().manual_seed(1))
    assert nothing is None
    assert torch.equal(without, moved)


def test_some_are_mirrored_and_some_are_not() -> None:
    x, y = pairs(64)
    _, labels = FlipTogether()(x, torch.Generator().manual_seed(1), y)
    assert labels is not None
    same, mirrored = ((labels == other).flatten(1).all(1) for other in (y, y.flip(2)))
    assert (same ^ mirrored).all()
    assert 16 < same.sum() < 48


def test_crops_are_parts_of_the_image_and_reach_all_of_it() -> None:
    x, _ = pairs(1)
    label = torch.arange(140).view(1, 10, 14)
    _, cut = CropTogether((4, 6))(
        x.expand(400, -1, -1, -1), torch.Generator().manual_seed(1), label.expand(400, -1, -1)
    )
    assert cut is not None
    assert cut.shape == (400, 4, 6)
    corner = cut[:, 0, 0]
    assert torch.equal(cut, corner[:, None, None] + (torch.arange(4)[:, None] * 14 + torch.arange(6)))
    assert set((corner // 14).tolist()) == set(range(7))
    assert set((corner % 14).tolist()) == set(range(9))


def test_enlarged_labels_stay_labels_and_lie_where_the_image_does() -> None:
    label = torch.zeros(8, 20, 20, dtype=torch.long)
    label[:, 10:] = 200
    x = label[:, None] / 255
    cut, labels = CropTogether(20, scale=(1.5, 2.0))(x, torch.Generator().manual_seed(1), label)
    assert labels is not None
    assert set(labels.unique().tolist()) == {0, 200}
    certain = (cut[:, 0] - 100 / 255).abs() > 0.3
    assert torch.equal((cut[:, 0] > 100 / 255)[certain], (labels == 200)[certain])
    assert certain.float().mean() > 0.8


def test_outside_the_image_it_is_black_and_void() -> None:
    x, y = torch.ones(3, 1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.long)
    cut, labels = CropTogether((6, 4), void=9)(x, torch.Generator().manual_seed(0), y)
    assert labels is not None
    assert labels[:, [0, 5]].unique().tolist() == [9]
    assert labels[:, 1:5].unique().tolist() == [0]
    assert cut[:, :, [0, 5]].abs().max() < 1e-6
    assert torch.allclose(cut[:, :, 1:5], torch.ones(3, 1, 4, 4))


def test_a_loader_augments_both_and_repeats_itself() -> None:
    x, y = pairs(8)
    images = (x * 255).round().byte()
    augment = [CropTogether(4), FlipTogether()]
    batches, again = (
        list(TensorLoader(images, y.byte(), batch_size=4, shuffle=True, augment=augment, seed=3)) for _ in range(2)
    )
    for batch, other in zip(batches, again, strict=True):
        assert batch.y is not None
        assert batch.x.shape == (4, 1, 4, 4)
        assert torch.allclose(batch.x[:, 0] * 255, batch.y.float(), atol=1e-3)
        assert torch.equal(batch.x, other.x)


def test_an_augmentation_of_images_only_is_refused_where_labels_are_maps() -> None:
    x, y = pairs(4)
    with pytest.raises(
        ConfigError, match=r"HorizontalFlip would move the images and not their label maps: .*FlipTogether"
    ):
        TensorLoader((x * 255).byte(), y, batch_size=2, shuffle=False, augment=[HorizontalFlip()])
    TensorLoader((x * 255).byte(), y[:, 0, 0], batch_size=2, shuffle=False, augment=[HorizontalFlip()])
