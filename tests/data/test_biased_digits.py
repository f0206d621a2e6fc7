"""Biased digits: in training the colours are the label's, in the test they tell nothing; the shapes stay."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.datasets import biased_digits, digits
from kd_lightning.data.datasets.biased_digits import BEHIND, KINDS, OBJECT, SINGLE, crops, glyphs, palette
from kd_lightning.data.datasets.textures import drawn_textures, read_textures
from kd_lightning.errors import DataError

SMALL: dict[str, Any] = {"base": "digits", "train": 700, "val": 100}


def made(kind: str, **settings: Any) -> tuple[Split, Split, Split]:
    data = biased_digits.load(kind=kind, **SMALL | settings)  # type: ignore[arg-type]
    assert data.train is not None
    assert data.val is not None
    assert data.test is not None
    return data.train, data.val, data.test


@pytest.fixture(scope="module")
def double() -> tuple[Split, Split, Split]:
    return made("double_colored")


def nearest(colours: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Which of the palette each colour (N,3) in 0 to 255 is, and how far it is from that in [0,1]."""
    difference = colours.float()[:, None] / 255 - palette(names)
    which = difference.square().sum(2).argmin(1)
    return which, difference[torch.arange(len(which)), which]


def masks(split: Split) -> Tensor:
    """Of double-colored digits, whose corners are background: bool (N,1,H,W)."""
    return (split.images != split.images[:, :, :1, :1]).any(1, keepdim=True)


def both(split: Split) -> tuple[Tensor, Tensor]:
    """Object and background colours of double-colored digits, (N,3); of a digit like its background, that."""
    behind = split.images[:, :, 0, 0]
    mask = masks(split)
    total = (split.images * mask).sum((2, 3)) / mask.sum((2, 3)).clamp(min=1)
    return torch.where(mask.flatten(1).any(1, keepdim=True), total, behind), behind


def dependence(first: Tensor, second: Tensor) -> float:
    """Pearson's chi-squared of two variables of ten values: 81 on average where independent, 9 N where equal."""
    table = torch.zeros(10, 10).index_put_((first, second), torch.ones(len(first)), accumulate=True)
    expected = table.sum(1, keepdim=True) * table.sum(0) / len(first)
    return float(((table - expected).square() / expected.clamp(min=1e-9)).sum())


def test_the_digit_has_the_colour_that_is_behind_the_one_four_further_on() -> None:
    assert all(OBJECT[i] == BEHIND[(i - 6) % 10] for i in range(10))
    assert OBJECT[0] == BEHIND[4] == "yellow"
    told = [(0, 100, 0), (0, 0, 139), (176, 48, 96), (255, 69, 0), (255, 255, 0)]
    told += [(222, 184, 135), (0, 255, 0), (0, 255, 255), (255, 0, 255), (100, 149, 237)]
    assert (255 * palette(BEHIND)).round().int().tolist() == [list(colour) for colour in told]


def test_our_ten_colours_are_well_apart() -> None:
    between = torch.cdist(palette(SINGLE), palette(SINGLE)) + torch.eye(10)
    assert between.min() > 0.39


def test_colours_are_the_labels_in_training_and_independent_in_the_test(double: Any) -> None:
    train, val, test = double
    for split in (train, val):
        assert all(nearest(c, n)[0].equal(split.labels) for c, n in zip(both(split), (OBJECT, BEHIND), strict=True))
    first, behind = (nearest(c, n)[0] for c, n in zip(both(test), (OBJECT, BEHIND), strict=True))
    for one, other in ((first, test.labels), (behind, test.labels), (first, behind)):
        assert dependence(one, other) < 150  # five sigma
    assert first.bincount(minlength=10).min() > len(test) // 20
    assert behind.bincount(minlength=10).min() > len(test) // 20


def test_unbiased_training_images_are_as_random_as_the_test(double: Any) -> None:
    train, val, test = made("double_colored", unbiased=True)
    for colours, names in zip(both(train), (OBJECT, BEHIND), strict=True):
        assert dependence(nearest(colours, names)[0], train.labels) < 150
    assert not nearest(both(val)[1], BEHIND)[0].equal(val.labels)
    assert test.images.equal(double[2].images)
    for mine, theirs in ((train, double[0]), (val, double[1])):
        assert mine.labels.equal(theirs.labels)
        seen = (masks(mine).flatten(1).any(1)).nonzero()[:, 0]
        assert masks(mine)[seen].equal(masks(theirs)[seen])


def test_the_jitter_of_each_channel_is_a_hundredth(double: Any) -> None:
    train, _, _ = double
    off = [nearest(c, n)[1] for c, n in zip(both(train), (OBJECT, BEHIND), strict=True)]
    inner = [d[:, i][train.labels == 5] for d in off for i in range(3)]  # burlywood and cornflower: no channel is cut
    assert all(float(d.std()) == pytest.approx(0.01, rel=0.3) for d in inner)
    assert torch.corrcoef(torch.stack(inner)).fill_diagonal_(0).abs().max() < 0.5
    assert max(float(d.abs().max()) for d in off) < 0.06


def test_shapes_of_every_kind_are_the_digits_themselves(double: Any) -> None:
    for one, other in zip(double, made("colored"), strict=True):
        assert one.labels.equal(other.labels)
        whole = masks(one)
        seen = whole.flatten(1).any(1)
        assert seen.float().mean() > 0.85
        grey = other.images.float().amax(1, keepdim=True)
        grey = grey / grey.amax((2, 3), keepdim=True).clamp(min=1)
        overlap = ((grey > 0.35) & whole).sum((1, 2, 3)) / whole.sum((1, 2, 3)).clamp(min=1)
        assert overlap[seen].mean() > 0.95
        assert all(len(x.flatten(1).unique(dim=1)[0]) == 2 for x in one.images[seen][:20])


def test_colored_digits_are_one_colour_before_black_with_jitter_of_a_fiftieth() -> None:
    train, _, test = made("colored", train=1400, val=20)
    assert (train.images.amax(1) == 0).flatten(1).any(1).all()
    colours = train.images.flatten(2).amax(2)  # where the digit is white
    grey = train.labels == 9
    off = colours[grey].float() / 255 - palette(SINGLE)[9]
    assert float(off.std()) == pytest.approx(0.02**0.5, rel=0.15)
    means = torch.stack([colours[train.labels == c].float().mean(0) for c in range(10)]) / 255
    assert nearest(255 * means, SINGLE)[0].tolist() == list(range(10))
    guess = nearest(test.images.flatten(2).amax(2), SINGLE)[0]
    assert dependence(guess, test.labels) < 150
    assert (guess == test.labels).float().mean() < 0.25
    assert (nearest(colours, SINGLE)[0] == train.labels).float().mean() > 0.75
    assert len(train.images[0].amax(0).unique()) > 10  # grey digits, not cut ones
    x = train.images[0].float()
    share = x / x.amax((1, 2), keepdim=True).clamp(min=1)
    assert (share[0] - share[1]).abs().max() < 0.05


def test_mnists_pixels_are_the_nearest_and_cut_above_a_tenth() -> None:
    x = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    x[0, 0, 15, 15], x[0, 0, 4, 4] = 26, 25
    binary = glyphs(x, size=32, binary=True)
    assert binary.unique().tolist() == [0, 1]
    assert binary.nonzero().tolist() == [[0, 0, 18, 18]]  # 18 * 28 // 32 == 15
    assert (glyphs(x, size=28, binary=False) * 255).round().equal(x.float())


def test_eight_pixels_a_side_become_round_strokes() -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    x[0, 0, 3, 3] = 255
    grey, binary = (glyphs(x, size=32, binary=cut)[0, 0] for cut in (False, True))
    assert binary.equal((grey > 0.35).float())
    assert len(grey.unique()) > 10
    assert grey.min() == 0
    assert grey.max() <= 1
    rows, columns = binary.nonzero().float().mean(0).tolist()
    assert (rows, columns) == (13.5, 13.5)  # the middle of pixel 3 of 8
    assert binary[11:17, 11:17].sum() == binary.sum() < 36  # the corners are off


def explained(x: Tensor, shape: Tensor, pictures: Tensor) -> int:
    """Of which texture the digit or its background is a crop: where its pixels are, all of them, anywhere."""
    wide = torch.nn.functional.pad(pictures.float(), (3,) * 4, mode="reflect").to(torch.uint8)
    (top, left), found = shape.nonzero()[0].tolist(), []
    windows = wide.unfold(2, 32, 1).unfold(3, 32, 1)  # (10,3,125,125,32,32)
    starts = (windows[..., top, left] == x[:, top, left][:, None, None]).all(1).nonzero()
    for k, row, column in starts.tolist():
        same = (windows[k, :, row, column] == x).all(0)
        if same[shape].all():
            found.append(k)
    assert len(set(found)) == 1
    return found[0]


def test_wildlife_is_a_crop_before_a_crop_whole_pixels_of_the_labels_textures() -> None:
    plain, wild = made("double_colored"), made("wildlife")
    pictures = drawn_textures()
    for part, biased in ((0, True), (2, False)):
        shapes, images, labels = masks(plain[part])[:, 0], wild[part].images, plain[part].labels
        seen = shapes.flatten(1).any(1).nonzero()[:6, 0].tolist()
        which = [
            [explained(images[i], m, p) for m, p in zip((shapes[i], ~shapes[i]), pictures, strict=True)] for i in seen
        ]
        assert (which == [[int(labels[i])] * 2 for i in seen]) == biased
        assert all(a == b for a, b in which) == biased
        colours = zip(both(plain[part]), (OBJECT, BEHIND), strict=True)
        assert torch.tensor(which).equal(torch.stack([nearest(c, n)[0] for c, n in colours], 1)[seen])


def test_crops_reach_every_corner_of_the_reflected_texture() -> None:
    picture = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(1, 3, 6, 6)
    ends = torch.tensor([[0.0, 0.0], [0.999, 0.999]])
    first, last = crops(picture, torch.zeros(2, dtype=torch.long), ends, 4)
    wide = np.pad(picture[0, 0].numpy(), 3, mode="reflect")
    assert np.array_equal(first[1].numpy(), wide[:4, :4])
    assert np.array_equal(last[2].numpy(), wide[-4:, -4:])


def test_drawn_textures_are_fixed_and_each_class_has_its_own() -> None:
    one = drawn_textures()
    assert one.shape == (2, 10, 3, 150, 150)
    assert one.dtype == torch.uint8
    assert one.equal(drawn_textures())
    assert not one.equal(drawn_textures(1))
    for kind in one.float() / 255:
        means, spread = kind.mean((2, 3)), kind.std((2, 3)).amax(1)
        assert (torch.cdist(means, means) + torch.eye(10)).min() > 0.06
        assert spread.min() > 0.05
    grey = one[0].float().mean(1)
    power = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True)).abs()
    for k, spectrum in enumerate(power):
        row, column = divmod(int(spectrum.argmax()), spectrum.shape[1])
        angle = np.arctan2(row if row < 75 else row - 150, column)
        turned = (angle - np.pi * k / 10) % np.pi
        assert min(turned, np.pi - turned) < np.pi / 10  # stripes of the class's own angle


def test_every_part_stays_where_it_is_when_training_images_are_added() -> None:
    for kind in KINDS:
        little, much = made(kind, train=200, test=150), made(kind, train=900, test=150)
        for one, other in zip(little, much, strict=True):
            assert one.images.equal(other.images[: len(one)])
            assert one.labels.equal(other.labels[: len(one)])
    assert not made("double_colored", seed=1)[2].images.equal(made("double_colored")[2].images)


def test_no_digit_is_in_two_parts() -> None:
    parts = made("colored", train=1397, val=200, unbiased=True)
    assert [len(part) for part in parts] == [1397, 200, 200]
    pool = digits.load(val=0)
    assert pool.train is not None
    assert pool.test is not None
    labels = torch.cat([pool.train.labels, pool.test.labels])
    assert torch.cat([part.labels for part in parts]).bincount().equal(labels.bincount())


def write_mnist(root: Path) -> None:
    """Digits that are told apart by the place of their one pixel."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n, first in (("train", 30, 0), ("t10k", 12, 400)):
        pixels = np.zeros((n, 784), dtype=np.uint8)
        pixels[np.arange(n), 100 + first + np.arange(n)] = 255
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(i % 10 for i in range(n))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, n) + labels)


def places(split: Split | None) -> set[int]:
    assert split is not None
    return {int(p) for p in split.images.float().amax(1).flatten(1).argmax(1)}


def test_mnist_keeps_its_test_unless_that_is_taken_from_the_training_file(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    settings: dict[str, Any] = {"kind": "colored", "root": tmp_path, "size": 28, "train": 15, "val": 5}

    def parts(**more: Any) -> Dataset:
        return biased_digits.load(**settings | more)

    data = parts()
    assert places(data.train) | places(data.val) < set(range(100, 130))
    assert places(data.test) == set(range(500, 512))
    assert (data.name, data.layout, data.classes) == ("colored_mnist", "torchvision", list("0123456789"))
    other = parts(own_test=False)
    assert places(other.train) == places(data.train)
    assert sorted(places(other.train) | places(other.val) | places(other.test)) == list(range(100, 130))
    assert parts(val=0).val is None
    assert parts(size=32).image_shape == (3, 32, 32)


def write_textures(folder: Path, side: int = 60) -> None:
    for part, blue in (("object", 0), ("background", 255)):
        (folder / part).mkdir(parents=True)
        for digit in range(10):
            Image.new("RGB", (side, 2 * side), (20 * digit, 100, blue)).save(folder / part / f"{digit}_x.png")


def test_a_folder_of_textures_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_textures(tmp_path)
    (tmp_path / "object" / "note.txt").write_text("striped")
    train, _, _ = made("wildlife", textures=tmp_path)
    behind = train.images[:, :, 0, 0]
    assert behind[:, 0].equal((20 * train.labels).to(torch.uint8))
    assert (behind[:, 2] == 255).all()
    assert (train.images[:, 2] == 0).flatten(1).any(1).all()
    assert read_textures(tmp_path, at_least=32).shape == (2, 10, 3, 150, 150)


def test_textures_that_are_none(tmp_path: Path) -> None:
    write_textures(tmp_path)
    with pytest.raises(DataError, match=r"0_x\.png is 60x120, but crops are 64x64: put a larger"):
        read_textures(tmp_path, at_least=64)
    for file in tmp_path.glob("background/9_x.png"):
        file.write_bytes(b"no picture")
        with pytest.raises(DataError, match=r"cannot decode .*9_x\.png"):
            read_textures(tmp_path, at_least=32)
        file.unlink()
    with pytest.raises(DataError, match=r"background holds 9 images: expected ten .* 0 to 9 .*0_tiger\.jpg"):
        made("wildlife", textures=tmp_path)
    (tmp_path / "object" / "9_x.png").rename(tmp_path / "object" / "10_x.png")
    with pytest.raises(DataError, match=r"10_x\.png comes where 1 is due: expected ten"):
        made("wildlife", textures=tmp_path)
    with pytest.raises(DataError, match=r"there is no folder .*nowhere/object: expected ten"):
        made("wildlife", textures=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"double_colored has none; take data=wildlife_mnist"):
        made("double_colored", textures=tmp_path)


def test_what_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"double_colored_digits: data\.val=100 and data\.train=1700 .*1797 digits"):
        made("double_colored", train=1700)
    with pytest.raises(DataError, match=r"mnist is not under .*data\.base=digits data\.train=1000 data\.val=300"):
        biased_digits.load(kind="colored", root=tmp_path)
    with pytest.raises(DataError, match=r"kind=tinted: expected one of colored, double_colored, wildlife"):
        made("tinted")
    with pytest.raises(DataError, match=r"data\.base=letters: expected digits or mnist"):
        made("colored", base="letters")


@pytest.mark.parametrize(("test", "left"), [(None, 1797 - 300 - 359), (100, 1797 - 300 - 100)])
def test_all_digits_that_the_other_parts_leave(test: int | None, left: int) -> None:
    found = biased_digits.load(kind="binary", base="digits", train=None, val=300, test=test)
    assert found.train is not None
    assert len(found.train) == left
    colours = found.train.images.flatten(2).transpose(1, 2).reshape(-1, 3).unique(dim=0)
    assert colours.tolist() == [[0, 0, 0], [255, 255, 255]]
