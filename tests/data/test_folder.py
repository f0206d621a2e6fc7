"""Folders of images: layouts, decoding, the cache, and what is said about damaged or misplaced files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.data.classes import folder_classes
from kd_lightning.data.datasets import decoding, folder, image_files
from kd_lightning.errors import DataError
from kd_lightning.store.artifacts import Store


def fill(where, classes=("cat", "dog"), n=3, size=(8, 8), ending="png", offset=0):
    for label, name in enumerate(classes):
        (where / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", size, (100 * label + offset, i, 0)).save(where / name / f"{i}.{ending}")


def test_train_val_and_test_folders_with_their_class_names(tmp_path):
    for offset, part in enumerate(("train", "val", "test")):
        fill(tmp_path / part, n=3 + offset, offset=offset)
    data = folder.load(root=tmp_path, size=8)
    assert [len(s) for s in (data.train, data.val, data.test)] == [6, 8, 10]
    assert (data.classes, data.layout, data.encoding, data.skipped) == (["cat", "dog"], "folders", "png", 0)
    assert data.train.images[:, 0, 0, 0].tolist() == [0] * 3 + [100] * 3
    assert data.val.images[:, 0, 0, 0].tolist() == [1] * 4 + [101] * 4
    assert data.test.labels.tolist() == [0] * 5 + [1] * 5
    assert folder_classes(tmp_path) == ["cat", "dog"]


def test_without_a_val_folder_some_training_images_are_held_out(tmp_path):
    fill(tmp_path / "train", n=10)
    data = folder.load(root=tmp_path, size=8, val=0.2)
    assert (len(data.train), data.val.labels.bincount().tolist(), data.test) == (16, [2, 2], None)
    assert folder.load(root=tmp_path, size=8, val=0).val is None


def test_a_test_folder_alone_and_classes_at_the_top(tmp_path):
    fill(tmp_path / "a" / "test")
    data = folder.load(root=tmp_path / "a", size=8)
    assert (data.train, data.val, len(data.test)) == (None, None, 6)
    assert data.image_shape == (3, 8, 8)
    fill(tmp_path / "b")
    data = folder.load(root=tmp_path / "b", size=8, val=2)
    assert (len(data.train), len(data.val), data.test) == (4, 2, None)
    assert folder_classes(tmp_path / "a") == folder_classes(tmp_path / "b") == ["cat", "dog"]


def test_nested_and_hidden_folders_and_other_files(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "train" / "cat", classes=("more",))
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    data = folder.load(root=tmp_path, size=8, val=0)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 3


def test_the_middle_square_of_the_resized_image_is_kept(tmp_path):
    picture = np.zeros((8, 24, 3), dtype=np.uint8)
    picture[:, 8:16] = (0, 255, 0)
    (tmp_path / "wide").mkdir()
    Image.fromarray(picture).save(tmp_path / "wide" / "a.png")
    pixels = image_files.decode(tmp_path / "wide" / "a.png", size=8, channels=3)
    assert pixels.shape == (3, 8, 8)
    assert (pixels[1] == 255).all()
    assert pixels[0].max() == 0
    small = image_files.decode(tmp_path / "wide" / "a.png", size=4, channels=1)
    assert small.shape == (1, 4, 4)
    assert (small[0, :, 1:3] == 150).all()  # 0.587 * 255, away from the blurred border


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert (image_files.decode(tmp_path / "deep.png", size=4, channels=1) == 128).all()


def truncate(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def test_a_corrupt_png_is_named_with_its_reason_and_the_way_out(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"train/dog/1\.png: cannot identify.*data\.skip_bad=true") as caught:
        folder.load(root=tmp_path, size=8)
    assert str(tmp_path) in str(caught.value)
    assert "more)" not in str(caught.value)


def test_a_truncated_jpeg_is_skipped_and_counted_when_asked(tmp_path):
    fill(tmp_path / "train", ending="jpg")
    truncate(tmp_path / "train" / "cat" / "0.jpg")
    truncate(tmp_path / "train" / "cat" / "2.jpg")
    with pytest.raises(DataError, match=r"cat/0\.jpg: .*truncated.*\(and 1 more\)"):
        folder.load(root=tmp_path, size=8)
    data = folder.load(root=tmp_path, size=8, skip_bad=True, val=0)
    assert (data.skipped, data.encoding, data.train.labels.tolist()) == (2, "jpeg", [0, 1, 1, 1])
    assert data.train.images[0, 1, 0, 0] == 1


def test_a_class_without_a_readable_image_is_not_silently_lost(tmp_path):
    fill(tmp_path / "train", n=1)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of class cat in the part train can be decoded"):
        folder.load(root=tmp_path, size=8, skip_bad=True, val=0)


def test_an_empty_class_folder_is_named(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "train" / "eel").mkdir()
    (tmp_path / "train" / "eel" / "readme.md").write_text("")
    with pytest.raises(DataError, match=r"train/eel holds no image"):
        folder.load(root=tmp_path, size=8)


def test_a_test_class_unknown_to_training_is_named(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", classes=("cat", "eel"))
    with pytest.raises(DataError, match=r"test/eel is none of the 2 classes .*\(cat, dog\)"):
        folder.load(root=tmp_path, size=8)


def test_given_class_names_set_the_order_of_the_labels(tmp_path):
    fill(tmp_path / "test")
    data = folder.load(root=tmp_path, size=8, classes=["dog", "cow", "cat"])
    assert (data.test.labels.tolist(), data.num_classes) == ([2, 2, 2, 0, 0, 0], 3)


@pytest.mark.parametrize("read", [folder_classes, lambda root: folder.load(root=root, size=8)])
def test_what_was_found_instead_of_class_folders_is_said(tmp_path, read):
    with pytest.raises(DataError, match=r"no folder .*nowhere: set data\.root .*train/<class>"):
        read(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"no class folders in .*train: found nothing, expected train/<class>"):
        read(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "train" / "a.png")
    with pytest.raises(DataError, match=r"found 1 file \(a\.png\), expected"):
        read(tmp_path)
    (tmp_path / "only" / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds a folder val, but neither train nor test"):
        read(tmp_path / "only")


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    decoded = []
    original = image_files.decode
    monkeypatch.setattr(decoding, "decode", lambda path, **k: decoded.append(path.name) or original(path, **k))
    fill(tmp_path / "data" / "train")
    store = Store(tmp_path / "store")

    def load(size=8, **options):
        decoded.clear()
        data = folder.load(root=tmp_path / "data", size=size, store=store, val=0, **options)
        return data, len(decoded)

    first, n = load()
    assert n == 6
    again, n = load()
    assert n == 0
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.train.labels, again.train.labels)
    assert list(store.root.glob("images-*/images.safetensors"))
    assert load(size=4)[1] == 6
    assert load(channels=1)[1] == 6
    file = tmp_path / "data" / "train" / "cat" / "0.png"
    os.utime(file, ns=(0, 1))
    assert load()[1] == 0  # the same content
    Image.new("RGB", (8, 8), (9, 9, 9)).save(file)
    assert int(load()[0].train.images[0, 0, 0, 0]) == 9


def test_the_cache_remembers_which_files_were_bad(tmp_path):
    fill(tmp_path / "data" / "train")
    (tmp_path / "data" / "train" / "cat" / "1.png").write_bytes(b"x")
    store = Store(tmp_path / "store")
    for _ in range(2):
        data = folder.load(root=tmp_path / "data", size=8, store=store, skip_bad=True, val=0)
        assert (data.skipped, data.train.labels.tolist()) == (1, [0, 0, 1, 1, 1])
        with pytest.raises(DataError, match=r"cat/1\.png"):
            folder.load(root=tmp_path / "data", size=8, store=store)


def test_class_names_are_read_without_importing_torch(tmp_path):
    fill(tmp_path / "train", n=1)
    code = (
        "import sys; from kd_lightning.data.classes import folder_classes; "
        f"print(folder_classes({str(tmp_path)!r}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['cat', 'dog'] False"


def test_another_image_of_the_same_name_size_and_time_is_decoded(tmp_path):
    kept = Store(tmp_path / "store")

    def mean(where):
        return folder.load(root=tmp_path / where, size=8, store=kept, val=0).train.images.float().mean()

    for where, colour in (("one", 10), ("two", 99)):
        fill(tmp_path / where, ending="bmp", offset=colour)
        for file in (tmp_path / where).rglob("*.bmp"):
            os.utime(file, ns=(0, 0))
    assert mean("two") - mean("one") == 89 / 3  # of the three channels
    assert len([path for path in kept.root.glob("images-*") if path.is_dir()]) == 2


def layout(root: Path, *places: str, each: int = 2) -> Path:
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(root / place / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Training", "valid", "Testing"), ("TRAIN", "Validation", "Test"), ("train_set", "dev", "test-set")],
)
def test_usual_names_of_parts_in_any_case(train: str, val: str, test: str, tmp_path: Path) -> None:
    layout(tmp_path, *(f"{part}/{name}" for part in (train, val, test) for name in ("cat", "dog")))
    found = folder.load(root=tmp_path, size=8)
    assert found.classes == ["cat", "dog"]
    assert [len(part) for part in (found.train, found.val, found.test) if part] == [4, 4, 4]
    assert f"4 images for train ({train})" in found.found
    assert "2 classes: cat, dog" in found.found


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (("set/train/a", "set/test/a"), r"one folder, set, with test, train in it: set data\.root=\S+/set"),
        (("train/a", "test/a"), "one class folder, a: with one class there is nothing to tell apart"),
        (("train_data/a", "test_data/a"), "is test_data a part of the set and no class"),
        (("val/a", "valid/b", "train/a"), "val and valid, both for val"),
        (("images_train/a", "images_test/a"), "is images_test a part of the set and no class"),
        (("train/a", "train/b", "test-images/a"), r"train and test-images: which part is test-images\?"),
        (("trainval/a", "test/a", "test/b"), r"test and trainval: which part is trainval\?"),
    ],
)
def test_misread_folders_are_refused(places: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        folder.load(root=layout(tmp_path, *places), size=8)


def test_what_may_be_misread_is_said(tmp_path: Path) -> None:
    root = layout(
        tmp_path, *(f"{part}/{name}" for part in ("train", "test", "holdout") for name in ("a", "bullet_train"))
    )
    Image.new("RGB", (8, 8)).save(root / "train" / "loose.png")
    beside, loose = folder.load(root=root, size=8, val=0).doubts
    assert beside == f"{root}: holdout beside the parts of the set: not read"
    assert loose == f"{root / 'train'}: 1 images outside the class folders were left out, such as loose.png"
    folds = layout(tmp_path / "folds", *(f"{fold}/{name}" for fold in ("one", "two") for name in ("cat", "dog")))
    (deep,) = folder.load(root=folds, size=8, val=0).doubts
    assert "one, two ... were taken as the classes, and each holds the folders cat, dog" in deep
    layout(folds, "two/cow")
    assert folder.load(root=folds, size=8, val=0).doubts == ()


def test_formats_that_are_read_and_files_that_are_not(tmp_path: Path) -> None:
    layout(tmp_path, "cat", "dog")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.jfif", "JPEG")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "b.tga", "TGA")
    for name in ("c.heic", "d.heic", "notes.txt"):
        (tmp_path / "dog" / name).write_bytes(b"?")
    found = folder.load(root=tmp_path, size=8, val=0)
    assert found.train is not None
    assert len(found.train) == 6
    assert found.unread == {".heic": 2, ".txt": 1}


def test_a_picture_is_read_as_the_camera_was_held(tmp_path: Path) -> None:
    picture = Image.new("L", (8, 8))
    picture.paste(255, (0, 0, 8, 4))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    assert image_files.decode(tmp_path / "a.png", size=8, channels=1)[0, 0, 0] == 0
    assert image_files.decode(tmp_path / "a.png", size=8, channels=1)[0, 7, 0] == 255
