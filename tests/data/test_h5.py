"""Files of cGAN-KD's authors and the published faces: read as they are, and refused in words where they are not."""

from __future__ import annotations

import builtins
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.core.tasks import Regression
from kd_lightning.data.datasets import h5, imagenet100, utkface
from kd_lightning.errors import DataError

h5py = pytest.importorskip("h5py")
STEERING = Regression(low=-88.13, high=97.92, unit="degrees")
AGES = Regression(low=0, high=60, unit="years", floored=True)


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def write(file: Path, **content: Any) -> Path:
    with h5py.File(file, "w") as out:
        for key, value in content.items():
            out.create_dataset(key, data=value, compression="gzip" if np.asarray(value).ndim > 1 else None)
    return file


def steering(file: Path, **changes: Any) -> Path:
    content = {"images_train": pixels(20, 3, 8, 8), "images_test": pixels(6, 3, 8, 8)}
    content |= {"labels_train": np.linspace(-88.13, 97.92, 20), "labels_test": np.zeros(6)}
    return write(file, **{k: v for k, v in (content | changes).items() if v is not None})


def load(file: Path, **settings: Any) -> Any:
    return h5.load(**{"name": "steering_angle", "file": file, "size": 8, "channels": 3, "task": STEERING} | settings)


def test_the_steering_file_is_read_as_it_is(tmp_path: Path) -> None:
    data = load(steering(tmp_path / "a.h5"))
    assert (data.name, data.layout, data.classes, data.image_shape) == ("steering_angle", "h5", [], (3, 8, 8))
    assert torch.equal(data.train.images, torch.from_numpy(pixels(20, 3, 8, 8)))
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.float32
    assert float(data.train.labels[-1]) == pytest.approx(97.92, abs=1e-5)
    assert data.val is None
    assert (data.task, len(data.test)) == (STEERING, 6)
    held = load(steering(tmp_path / "b.h5"), val=0.25)
    assert (len(held.train), len(held.val)) == (15, 5)
    assert sorted(torch.cat([held.train.labels, held.val.labels]).tolist()) == sorted(data.train.labels.tolist())


def test_imagenet100_is_the_authors_file_or_class_folders(tmp_path: Path) -> None:
    def pictures(part: str, count: int) -> None:
        for i, (label, n) in enumerate((label, n) for label in ("n01", "n02") for n in range(count)):
            place = tmp_path / "imagenet100" / part / label / f"{n}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(i + len(part), 8, 8, 3)[0]).save(place)

    load = partial(imagenet100.load, root=tmp_path, num_classes=2, size=8)
    with pytest.raises(DataError, match=r"expected the file ImageNet_128.*or the images in imagenet100/train/<class>"):
        load()
    pictures("train", 10)
    data = load(test=6, val=4)
    assert [len(part) for part in (data.train, data.val, data.test)] == [10, 4, 6]  # type: ignore[arg-type]
    assert data.test.labels.bincount().tolist() == [3, 3]
    again = load(test=6)
    assert len(again.train) == 14
    assert torch.equal(again.test.images, data.test.images), "the same test whatever is held out for validation"
    pictures("test", 3)
    data = load(test=6, val=4)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 6]  # type: ignore[arg-type]
    assert data.classes == ["n01", "n02"]
    content = {"images_train": pixels(20, 3, 8, 8), "images_valid": pixels(6, 3, 8, 8)}
    write(tmp_path / imagenet100.FILE, **content, labels_train=np.arange(20) % 2, labels_valid=np.arange(6) % 2)
    data = load(test=3)
    assert (data.layout, data.classes, len(data.train), data.val, len(data.test)) == ("h5", ["0", "1"], 20, None, 6)


@pytest.mark.parametrize(
    "labels",
    [np.arange(20, dtype=kind) for kind in ("int8", "uint16", "int64", "float16", "float64")]
    + [np.arange(20.0)[:, None], np.arange(20.0)[None, :, None]],
    ids=lambda v: f"{v.dtype}{v.shape}",
)
def test_labels_of_any_type_and_shape(labels: np.ndarray, tmp_path: Path) -> None:
    assert load(steering(tmp_path / "a.h5", labels_train=labels)).train.labels.tolist() == list(range(20))


def test_images_in_floats_of_the_same_range_and_other_sizes(tmp_path: Path) -> None:
    data = load(steering(tmp_path / "a.h5", images_train=pixels(20, 3, 8, 8).astype(np.float32) - 0.4 * 0), size=4)
    assert data.image_shape == (3, 4, 4)
    grey = load(steering(tmp_path / "b.h5"), channels=1)
    assert grey.image_shape == (1, 8, 8)


def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(steering(tmp_path / "a.h5"))
    monkeypatch.setattr(h5, "ROWS", 7)
    assert torch.equal(load(tmp_path / "a.h5").train.images, whole.train.images)


WRONG = {
    "no labels": ({"labels_train": None}, r"has no labels_train: found images_test, images_train, labels_test"),
    "channels last": ({"images_train": pixels(20, 8, 8, 3)}, r"images_train is uint8 \(20, 8, 8, 3\), .*\(N,C,H,W\)"),
    "not square": (
        {"images_train": pixels(20, 3, 8, 6)},
        r"images are 8x6, which 8x8 would distort: set data\.size=\[8,6\]",
    ),
    "in [0, 1]": ({"images_test": pixels(6, 3, 8, 8) / 255}, r"images_test holds nothing above .*multiply it by 255"),
    "in [-1, 1]": ({"images_test": pixels(6, 3, 8, 8) / 127.5 - 1}, r"images_test holds -1 to 1, expected 0 to 255"),
    "16 bits": ({"images_test": pixels(6, 3, 8, 8).astype("u2") * 9}, r"holds 0 to 22\d\d, expected 0 to 255"),
    "too few": ({"labels_train": np.zeros(19)}, r"labels_train is float64 \(19,\), expected numbers \(20,\)"),
    "too wide": ({"labels_train": np.zeros((20, 2))}, r"labels_train is float64 \(20, 2\), expected numbers"),
    "text": ({"labels_train": np.array([b"x"] * 20)}, r"labels_train is \|?S1 \(20,\), expected numbers"),
    "out of range": ({"labels_test": np.full(6, 98.0)}, r"steering_angle/test: label 98 outside -88\.13 to 97\.92 deg"),
}


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_a_file_of_another_kind_is_told_what_was_expected(changes: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load(steering(tmp_path / "a.h5", **changes))


def test_no_file_no_h5_file_and_no_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"there is no file .*data\.root=DIR"):
        load(tmp_path / "gone.h5")
    (tmp_path / "cut.h5").write_bytes(steering(tmp_path / "a.h5").read_bytes()[:600])
    with pytest.raises(DataError, match=r"cut\.h5 is truncated, or no HDF5 file"):
        load(tmp_path / "cut.h5")
    there = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "h5py":
            raise ImportError("No module named 'h5py'")
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"need h5py: (uv )?pip install 'kd-lightning\[h5\]'"):
        load(tmp_path / "a.h5")


def test_classes_and_their_valid_part(tmp_path: Path) -> None:
    content = {"images_train": pixels(9, 3, 8, 8), "labels_train": np.arange(9) % 3}
    file = write(tmp_path / "a.h5", **content, images_valid=pixels(3, 3, 8, 8), labels_valid=np.arange(3.0))
    data = load(file, task=None, num_classes=3, test="valid")
    assert (data.classes, data.test.labels.tolist(), data.test.labels.dtype) == (
        ["0", "1", "2"],
        [0, 1, 2],
        torch.int64,
    )
    with pytest.raises(DataError, match="label 2 on 3 images, but there are 2"):
        load(file, task=None, num_classes=2, test="valid")
    half = write(tmp_path / "b.h5", **content, images_valid=pixels(3, 3, 8, 8), labels_valid=np.array([0, 0.5, 1]))
    with pytest.raises(DataError, match=r"valid: label 0\.5 is no class"):
        load(half, task=None, num_classes=3, test="valid")


def faces(folder: Path, ages: list[int], ending: str = "0_2_20170116174525125.jpg.chip.jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, age in enumerate(ages):
        Image.new("RGB", (12, 12), (2 * age, i, 0)).save(folder / f"{age}_{i % 2}_{i}{ending}", "jpeg", quality=100)


def ages_of(split: Any) -> list[int]:
    return [round(float(x) / 2) for x in split.images[:, 0].float().mean((1, 2))]


def test_faces_tell_their_age_by_name(tmp_path: Path) -> None:
    faces(tmp_path / "UTKFace", [a for a in range(1, 61) for _ in range(5)] + [61, 116])
    data = utkface.load(task=AGES, root=tmp_path, size=8)
    assert (len(data.train), len(data.test), data.encoding, data.layout) == (240, 60, "jpeg", "files")
    for split in (data.train, data.test):
        assert all(abs(a - b) <= 1 for a, b in zip(ages_of(split), split.labels.tolist(), strict=True))
    assert data.test.labels.unique().numel() == 60, "of each age in proportion"
    assert data.train.labels.dtype == torch.float32
    assert data.task is AGES
    some = utkface.load(task=AGES, root=tmp_path / "UTKFace", size=8, at_most=2, val=10)
    assert len(some.train) + len(some.val) == 120
    again = utkface.load(task=AGES, root=tmp_path, size=8, at_most=2, val=10)
    assert torch.equal(some.train.images, again.train.images)


def test_a_name_without_a_race_is_known_and_one_without_an_age_is_not(tmp_path: Path) -> None:
    faces(tmp_path, [3, 4, 5, 6] * 3)
    faces(tmp_path, [39], ending="_20170116174525125.jpg")
    assert len(utkface.load(task=AGES, root=tmp_path, size=8).train) == 10
    Image.new("RGB", (8, 8)).save(tmp_path / "old_0_0.jpg")
    with pytest.raises(DataError, match=r"old_0_0\.jpg: no age in its name.*data\.skip_bad=true"):
        utkface.load(task=AGES, root=tmp_path, size=8)
    (tmp_path / "7_0_0_1.jpg").write_text("no image")
    data = utkface.load(task=AGES, root=tmp_path, size=8, skip_bad=True)
    assert (len(data.train) + len(data.test), data.skipped) == (13, 2)


def test_the_authors_file_of_faces_goes_before_pictures(tmp_path: Path) -> None:
    faces(tmp_path / "UTKFace", [3] * 5)
    labels = np.arange(1, 21, dtype=np.int64)
    steering(tmp_path / utkface.FILE, labels_train=labels, labels_test=np.full(6, 60))
    data = utkface.load(task=AGES, root=tmp_path, size=8)
    assert (data.layout, data.train.labels.tolist()) == ("h5", labels.tolist())
    assert len(utkface.load(task=AGES, root=tmp_path / utkface.FILE, size=8, at_most=1).train) == 20


def test_no_faces(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no faces in .*UTKFace_64x64_prop_0\.8\.h5, or pictures called \[age\]_"):
        utkface.load(task=AGES, root=tmp_path)
    faces(tmp_path, [70, 80])
    with pytest.raises(DataError, match=r"no face in .* is 0 to 60 years old"):
        utkface.load(task=AGES, root=tmp_path)
