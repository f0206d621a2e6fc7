"""Images with label maps: each set in its own layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scene_files import halves, put, scene

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.dataset import Dataset
from kd_lightning.data.datasets import dense_digits
from kd_lightning.data.datasets.scenes import camvid, cityscapes, nyuv2, voc2012
from kd_lightning.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*no pixel of")


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
