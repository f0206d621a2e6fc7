"""Turned digits: the angle is the label, and no digit is in two parts."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.core.tasks import Regression
from kd_lightning.data.datasets import digits, rotated_digits
from kd_lightning.data.datasets.rotated_digits import turned
from kd_lightning.errors import DataError

TASK = Regression(low=-60, high=60, unit="degrees")
SMALL = {"task": TASK, "base": "digits", "size": 8, "train": 300, "val": 100}


@pytest.fixture(scope="module")
def glyphs() -> torch.Tensor:
    """Digits of 28 pixels with room around them."""
    test = digits.load(size=20).test
    assert test is not None
    return torch.nn.functional.pad(test.images[:40], (4,) * 4)


def test_positive_is_counter_clockwise_as_pillow_turns(glyphs: torch.Tensor) -> None:
    for angle in (30.0, -52.0, 0.0):
        mine = turned(glyphs, torch.full((len(glyphs),), angle))
        pictures = [Image.fromarray(x[0].numpy()).rotate(angle, Image.Resampling.BILINEAR) for x in glyphs]
        theirs = torch.stack([torch.from_numpy(np.array(p))[None] for p in pictures])
        assert (mine.int() - theirs.int()).abs().max() <= 1


def test_an_image_shows_its_own_angle(glyphs: torch.Tensor) -> None:
    angles = torch.linspace(-60, 60, len(glyphs))
    once = turned(glyphs, angles)
    there, other = turned(once, -angles), turned(once, -angles + 25)

    def apart(x: torch.Tensor) -> torch.Tensor:
        return (x.float() - glyphs.float()).abs().mean((1, 2, 3))

    assert apart(there).mean() < 0.35 * apart(other).mean()
    assert (apart(there) < apart(other)).all()


def test_what_comes_in_from_outside_is_the_darkest_pixel() -> None:
    x = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    x[0, 0, 4, 4] = 90
    corners = turned(x, torch.tensor([45.0]))[0, 0]
    assert corners[0, 0] == corners[7, 7] == 90
    assert turned(x, torch.tensor([0.0])).equal(x)


def bases(images: torch.Tensor, pool: torch.Tensor, angles: torch.Tensor) -> list[int]:
    """Which image of the pool each was made of: the one that comes closest when turned alike."""
    found = []
    for image, angle in zip(images, angles, strict=True):
        again = turned(pool, angle.expand(len(pool))).float()
        found.append(int((again - image.float()).abs().sum((1, 2, 3)).argmin()))
    return found


def test_no_digit_is_in_two_parts() -> None:
    data = rotated_digits.load(**SMALL, test=60)
    loaded = digits.load(val=0)
    assert loaded.train is not None
    assert loaded.test is not None
    pool = torch.cat([loaded.train.images, loaded.test.images])
    parts = [split for split in (data.train, data.val, data.test) if split is not None]
    assert [len(split) for split in parts] == [300, 100, 60]
    used = [bases(split.images[:12], pool, split.labels[:12]) for split in parts]
    assert len({*used[0], *used[1], *used[2]}) == 36


def test_every_part_stays_where_it_is_when_training_images_are_added() -> None:
    little, much = rotated_digits.load(**SMALL, test=200), rotated_digits.load(**SMALL | {"train": 900}, test=200)
    for part, n in (("train", 300), ("val", 100), ("test", 200)):
        assert torch.equal(getattr(little, part).images, getattr(much, part).images[:n])
        assert torch.equal(getattr(little, part).labels, getattr(much, part).labels[:n])
    other = rotated_digits.load(**SMALL, seed=1)
    assert not torch.equal(little.train.images, other.train.images)  # type: ignore[union-attr]
    assert len(other.test or ()) == 1797 - 400
    assert (little.classes, little.task, little.image_shape) == ([], TASK, (1, 8, 8))


@pytest.mark.parametrize("law", ["uniform", "peaked"])
@pytest.mark.parametrize("whole", [True, False])
def test_angles_follow_their_law_within_the_range(law: str, whole: bool) -> None:
    data = rotated_digits.load(**SMALL | {"train": 1600, "law": law, "whole": whole})  # type: ignore[arg-type]
    assert data.train is not None
    angles = data.train.labels
    assert angles.dtype == torch.float32
    assert angles.min() >= -60
    assert angles.max() <= 60
    assert angles.equal(angles.round()) == whole
    assert abs(float(angles.mean())) < 3
    spread = {"uniform": 120 / 12**0.5, "peaked": 23.6}[law]
    assert float(angles.std()) == pytest.approx(spread, abs=1.5)
    if law == "uniform" and whole:
        assert angles.unique().numel() == 121


def test_mnist_is_turned_at_its_own_resolution_and_keeps_its_test(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 30), ("t10k", 12)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, n) + bytes(n))
    data = rotated_digits.load(task=TASK, root=tmp_path, size=28, train=20, val=5)
    assert data.train is not None
    assert data.test is not None
    assert (len(data.train), len(data.test), data.layout) == (20, 12, "torchvision")
    assert len(set(bases(data.test.images, torch.from_numpy(pixels)[:, None], data.test.labels))) == 12
    assert rotated_digits.load(task=TASK, root=tmp_path, train=20, val=0).image_shape == (1, 16, 16)


def test_what_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.val=100 and data\.train=1700 .*digits has 1797 digits.*choose fewer"):
        rotated_digits.load(**SMALL | {"train": 1700})
    with pytest.raises(DataError, match=r"mnist is not under .*data\.base=digits"):
        rotated_digits.load(task=TASK, root=tmp_path)
    with pytest.raises(DataError, match=r"data\.law=round: expected uniform or peaked"):
        rotated_digits.load(**SMALL | {"law": "round"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.base=letters: expected digits or mnist"):
        rotated_digits.load(**SMALL | {"base": "letters"})  # type: ignore[arg-type]
