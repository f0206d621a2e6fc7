"""Images with label maps: each set in its own layout, folders of one's own, and what is said of wrong files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.classes import count_pixel_classes
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets import dense_digits
from kd_lightning.data.datasets.scenes import camvid, cityscapes, folder, nyuv2, voc2012
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store

pytestmark = pytest.mark.filterwarnings("ignore:.*no pixel of")


def put(path: Path, pixels: Any, mode: str | None = None, **how: Any) -> None:
    """Write an image of these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    if mode == "P":
        picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode="L")
        picture.putpalette(how.pop("palette", [7 * i % 256 for i in range(768)]))
    picture.save(path, **how)


def scene(number: int, high: int = 6, wide: int = 8) -> np.ndarray:
    return np.full((high, wide, 3), 10 * number + 20)


def halves(left: int, right: int, high: int = 6, wide: int = 8) -> np.ndarray:
    pixels = np.full((high, wide), left)
    pixels[:, wide // 2 :] = right
    return pixels


def as_camvid(root: Path, left: int, right: int) -> None:
    for part in ("train", "val", "test"):
        put(root / "camvid" / part / "a.png", scene(1))
        put(root / "camvid" / f"{part}annot" / "a.png", halves(left, right))


def as_nyuv2(root: Path, left: int, right: int) -> None:
    for part in ("train", "test"):
        put(root / "NYUv2" / "image" / part / "00001.png", scene(1))
        put(root / "NYUv2" / "seg13" / part / "00001.png", halves(left, right))


def as_voc2012(root: Path, left: int, right: int) -> None:
    home = root / "VOCdevkit" / "VOC2012"
    for part, name in (("train", "2007_000032"), ("val", "2007_000033")):
        put(home / "JPEGImages" / f"{name}.jpg", scene(1))
        put(home / "SegmentationClass" / f"{name}.png", halves(left, right), "P")
        (home / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (home / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(f"{name}\n")


def as_cityscapes(root: Path, left: int, right: int) -> None:
    for part, name in (("train", "aachen_000000_000019"), ("val", "ulm_000000_000019")):
        city = name.partition("_")[0]
        put(root / "cityscapes" / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", scene(1))
        masks = root / "cityscapes" / "gtFine" / part / city
        put(masks / f"{name}_gtFine_labelIds.png", halves(left, right))
        put(masks / f"{name}_gtFine_instanceIds.png", halves(99, 99))


LAYOUTS: dict[str, tuple[Callable[..., None], Callable[..., Dataset], int, tuple[int, int], int, dict[str, Any]]] = {
    # how it is laid out, what reads it, its classes, the numbers of void and of a class in files, the class, settings
    "camvid": (as_camvid, camvid.load, 11, (11, 10), 10, {}),
    "nyuv2": (as_nyuv2, nyuv2.load, 13, (0, 13), 12, {"val": 0}),
    "voc2012": (as_voc2012, voc2012.load, 21, (255, 20), 20, {"val": 0}),
    "cityscapes": (as_cityscapes, cityscapes.load, 19, (4, 33), 18, {"val": 0}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_set_is_read_in_its_own_layout(tmp_path: Path, name: str) -> None:
    lay, load, classes, (void, number), label, settings = LAYOUTS[name]
    lay(tmp_path, void, number)
    found = load(task=Segmentation(classes), root=tmp_path, size=(3, 4), **settings)
    assert found.image_shape == (3, 3, 4)
    for split in (found.train, found.test):
        assert split is not None
        assert split.labels[0, 0].tolist() == [255, 255, label, label]
        assert split.labels.dtype == torch.uint8
        assert abs(int(split.images[0, 0, 0, 0]) - 30) <= 2  # VOC's are JPEG
    assert (found.val is not None) == (name == "camvid")
    assert len(found.classes) == classes == len(set(found.classes))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_set_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path, name: str) -> None:
    load, classes = LAYOUTS[name][1:3]
    with pytest.raises(DataError, match=rf"{name} is not under .*: expected the folder .*data\.root=DIR"):
        load(task=Segmentation(classes), root=tmp_path, size=4)


def test_the_number_of_classes_is_the_sets(tmp_path: Path) -> None:
    as_camvid(tmp_path, 0, 1)
    with pytest.raises(DataError, match=r"camvid has 11 classes, not 12: set data\.num_classes=11"):
        camvid.load(task=Segmentation(12), root=tmp_path, size=4)


def test_void_gets_the_label_of_the_task(tmp_path: Path) -> None:
    as_camvid(tmp_path, 11, 3)
    found = camvid.load(task=Segmentation(11, void=77), root=tmp_path, size=(6, 8))
    assert found.test is not None
    assert found.test.labels.unique().tolist() == [3, 77]


def test_a_list_of_images_names_files_and_not_paths(tmp_path: Path) -> None:
    as_voc2012(tmp_path, 0, 1)
    listed = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
    listed.write_text("../../../../etc/passwd\n")
    with pytest.raises(DataError, match=r"train\.txt: '\.\./\.\./.*' is no name of an image"):
        voc2012.load(task=Segmentation(21), root=tmp_path, size=4)
    listed.unlink()
    os.mkfifo(listed)
    with pytest.raises(DataError, match=r"train\.txt cannot be read \(a pipe, not a regular file\)"):
        voc2012.load(task=Segmentation(21), root=tmp_path, size=4)


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


def test_digits_lie_where_their_labels_say(tmp_path: Path) -> None:
    found = dense_digits.load(task=Segmentation(11), train=40, val=5, test=10)
    assert found.image_shape == (1, 32, 48)
    train = found.train
    assert train is not None
    digit, ground = (train.labels > 0) & (train.labels < 255), train.labels == 0
    pixels = train.images[:, 0].float()
    assert pixels[digit].mean() > pixels[ground].mean() + 60
    assert train.labels.unique().tolist() == [*range(11), 255]
    assert 0.65 < ground.float().mean() < 0.85
    again = dense_digits.load(task=Segmentation(11), train=40, val=5, test=10)
    assert torch.equal(again.train.images, train.images)  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"3 digits of 16 pixels have no room in 32x40: set data\.size=\[16,48\]"):
        dense_digits.load(task=Segmentation(11), size=[32, 40])
    other = dense_digits.load(task=Segmentation(11), train=40, val=5, test=10, seed=1)
    assert not torch.equal(other.train.images, train.images)  # type: ignore[union-attr]
