"""Images and label maps in folders of one's own, and what is said of wrong files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scene_files import halves, put, scene

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.classes import count_pixel_classes
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets.scenes import folder
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

pytestmark = pytest.mark.filterwarnings("ignore:.*no pixel of")


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., Dataset]:
    """Eight pairs in ``images/`` and ``masks/`` of the classes wall and door, and what reads them."""
    (tmp_path / "classes.txt").write_text("wall\ndoor\n")
    for i in range(8):
        put(tmp_path / "images" / f"{i}.jpg", scene(i))
        put(tmp_path / "masks" / f"{i}.png", halves(0, 1))

    def load(classes: int = 2, **settings: Any) -> Dataset:
        given = {"size": (6, 8), "val": 0, "test": 0, **settings}
        return folder.load(task=Segmentation(classes), root=tmp_path, names=tmp_path / "classes.txt", **given)

    return load


def test_a_folder_of_ones_own_gives_its_parts(mine: Callable[..., Dataset]) -> None:
    found = mine(val=2, test=2)
    assert found.classes == ["wall", "door"]
    assert [len(getattr(found, part)) for part in ("train", "val", "test")] == [4, 2, 2]  # type: ignore[arg-type]


def test_folders_of_parts_are_kept_apart(tmp_path: Path, mine: Callable[..., Dataset]) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    for kind in ("images", "masks"):
        (tmp_path / kind).rename(tmp_path / "train" / kind)
        ending = ".jpg" if kind == "images" else ".png"
        (tmp_path / "test" / kind).mkdir()
        (tmp_path / "train" / kind / f"3{ending}").rename(tmp_path / "test" / kind / f"3{ending}")
    found = mine(test=0.5)
    assert (len(found.train), found.val, len(found.test)) == (7, None, 1)  # type: ignore[arg-type]


def test_void_is_a_line_of_the_file_of_classes(tmp_path: Path, mine: Callable[..., Dataset]) -> None:
    (tmp_path / "classes.txt").write_text("# numbers are those of the lines\nVoid\nwall\n\ndoor\n")
    assert count_pixel_classes(tmp_path / "classes.txt") == 2
    for i in range(8):
        put(tmp_path / "masks" / f"{i}.png", halves(0, 2))
    found = mine()
    assert found.classes == ["wall", "door"]
    assert found.train.labels.unique().tolist() == [1, 255]  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_coloured_maps_are_read_by_the_palette(tmp_path: Path, mine: Callable[..., Dataset], mode: str) -> None:
    (tmp_path / "classes.txt").write_text("128 0 0 wall\n0, 64, 128, front door\n255 255 255 void\n")
    colours = np.array([[0, 64, 128], [255, 255, 255], [128, 0, 0]])  # in another order than the lines
    for i in range(8):
        numbers = halves(2, 0)
        numbers[0] = 1
        if mode == "P":
            put(tmp_path / "masks" / f"{i}.png", numbers, "P", palette=colours.flatten().tolist())
        else:
            put(tmp_path / "masks" / f"{i}.png", colours[numbers])
    found = mine()
    assert found.classes == ["wall", "front door"]
    label = found.train.labels[0]  # type: ignore[union-attr]
    assert label[0].tolist() == [255] * 8
    assert label[1].tolist() == [0] * 4 + [1] * 4


def test_images_and_maps_are_resized_and_cropped_together(tmp_path: Path, mine: Callable[..., Dataset]) -> None:
    """A map whose classes are the image's grey values stays so: the left half dark, the right light."""
    for i in range(8):
        grey = halves(0, 250, high=13, wide=21)
        put(tmp_path / "images" / f"{i}.jpg", np.stack([grey] * 3, axis=2), quality=100)
        put(tmp_path / "masks" / f"{i}.png", halves(0, 1, high=13, wide=21))
    split = mine(size=(5, 5)).train
    assert split is not None
    assert split.images.shape == (8, 3, 5, 5)
    light = split.images[0, 0] > 128
    assert light[:, :2].sum() == 0
    assert light[:, 3:].all()
    assert torch.equal(split.labels[0][:, [0, 1, 3, 4]] == 1, light[:, [0, 1, 3, 4]])
    assert set(split.labels.unique().tolist()) == {0, 1}  # nothing between classes


def spoilt(root: Path, what: str) -> None:
    """Make one map of the folder wrong."""
    mask = root / "masks" / "5.png"
    if what == "size":
        put(mask, halves(0, 1, high=7))
    elif what == "value":
        pixels = halves(0, 1)
        pixels[2, 3] = 9
        put(mask, pixels)
    elif what == "colours":
        put(mask, np.stack([halves(0, 1)] * 3, axis=2))
    elif what == "damaged":
        mask.write_bytes(mask.read_bytes()[:40])
    elif what == "text":
        mask.write_text("no picture")
    elif what == "pipe":
        mask.unlink()
        os.mkfifo(mask)
    elif what == "image":
        (root / "images" / "5.jpg").write_bytes(b"")
    elif what == "alone":
        mask.unlink()
    elif what == "twice":
        put(root / "masks" / "5.bmp", halves(0, 1))
    elif what == "none":
        for file in (root / "masks").iterdir():
            file.unlink()


WRONG = {
    "size": r"masks/5\.png cannot be read \(the label map has 8x7 pixels, its image 8x6",
    "value": r"masks/5\.png cannot be read \(the value 9 on 1 pixel is no class of .*classes\.txt \(2 classes\)",
    "colours": r"masks/5\.png cannot be read \(its pixels are .*there is no palette: .* for each class\): correct",
    "damaged": r"masks/5\.png .*correct the file, or leave it out",
    "text": r"masks/5\.png cannot be read \(cannot identify image file",
    "pipe": r"masks/5\.png cannot be read \(a pipe, not a regular file",
    "image": r"images/5\.jpg cannot be read \(cannot identify image file",
    "alone": r"images/5\.jpg has no label map .*masks/5\.\*: add it, or remove the image",
    "twice": r"5\.png and 5\.bmp have one name: leave one of them out",
    "none": r"no image in .*masks",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_named_in_one_line(tmp_path: Path, mine: Callable[..., Dataset], what: str) -> None:
    spoilt(tmp_path, what)
    with pytest.raises(DataError, match=WRONG[what]) as said:
        mine()
    assert "\n" not in str(said.value)


def test_a_colour_outside_the_palette_is_named(tmp_path: Path, mine: Callable[..., Dataset]) -> None:
    (tmp_path / "classes.txt").write_text("128 0 0 wall\n0 64 128 door\n")
    for i in range(8):
        put(tmp_path / "masks" / f"{i}.png", np.full((6, 8, 3), (128, 0, 1 if i == 5 else 0)))
    with pytest.raises(DataError, match=r"masks/5\.png .*the colour \[128, 0, 1\] on 48 pixels is no class"):
        mine()


def test_classes_without_a_pixel_are_warned_of(tmp_path: Path, mine: Callable[..., Dataset]) -> None:
    (tmp_path / "classes.txt").write_text("wall\ndoor\nwindow\n")
    with pytest.warns(UserWarning, match=r"segmentation_folder/train: no pixel of window, .*: add images that"):
        mine(3)
    (tmp_path / "classes.txt").write_text("wall\ndoor\n")
    with warnings.catch_warnings(action="error"):
        mine()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("wall\nwall\n", "wall is there twice"),
        ("1 2 3 wall\n1 2 3 door\n", r"\(1, 2, 3\) is there twice"),
        ("1 2 3 wall\ndoor\n", "1 of 2 classes have a colour, expected all or none"),
        ("wall\n", "names 1 classes, expected 2 to 255"),
    ],
)
def test_a_wrong_file_of_classes_is_said(tmp_path: Path, mine: Callable[..., Dataset], lines: str, said: str) -> None:
    (tmp_path / "classes.txt").write_text(lines)
    with pytest.raises(DataError, match=said):
        mine()
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt cannot be read .*set data\.names to a file"):
        mine()


def test_a_folder_without_images_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("wall\ndoor\n")
    with pytest.raises(DataError, match=r"no folder .*images: set data\.root to the folder that holds images/"):
        folder.load(task=Segmentation(2), root=tmp_path, names=tmp_path / "classes.txt", size=4)


def test_what_was_decoded_is_kept_and_follows_its_files(tmp_path: Path, mine: Callable[..., Dataset]) -> None:
    store = Store(tmp_path / "store")
    first = mine(store=store).train
    put(tmp_path / "masks" / "5.png", halves(1, 0))
    again = mine(store=store).train
    assert first is not None
    assert again is not None
    changed = (first.labels != again.labels).flatten(1).any(1)
    assert changed.tolist() == [i == 5 for i in range(8)]
    kept = len(list((tmp_path / "store").rglob("maps.safetensors")))
    mine(store=store)
    assert len(list((tmp_path / "store").rglob("maps.safetensors"))) == kept == 2
