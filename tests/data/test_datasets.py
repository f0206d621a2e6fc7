"""The splits, the public sets in each of their layouts, and what is said when one is missing."""

import bz2
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from kd_lightning.data.dataset import Dataset, Split, check_labels, fit_to, hold_out
from kd_lightning.data.datasets import digits, files, none
from kd_lightning.errors import DataError


def split_of(counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    images = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1)
    return Split(images, labels[order])


def test_hold_out_is_stratified_disjoint_and_fixed():
    everything = split_of([60, 30, 10])
    train, val = hold_out(everything, 20, seed=1)
    assert val.labels.bincount().tolist() == [12, 6, 2]
    ids = torch.cat([train.images, val.images]).flatten().tolist()
    assert sorted(ids) == list(range(100))
    again = hold_out(everything, 0.2, seed=1)[1]
    other = hold_out(everything, 0.2, seed=2)[1]
    assert torch.equal(val.images, again.images)
    assert not torch.equal(val.images, other.images)


def test_hold_out_gives_the_exact_number_and_spares_a_class_of_one():
    train, val = hold_out(split_of([8, 8, 1]), 9)  # shares 4.24, 4.24 and 0.53: the last class is first in line
    assert len(val) == 9
    assert 2 in train.labels


@pytest.mark.parametrize("size", [0, 15, 5000, 1.0, 0.01])
def test_hold_out_refuses_a_side_without_images(size):
    with pytest.raises(DataError, match=rf"cannot hold out {size} of 15 .*data\.val"):
        hold_out(split_of([7, 7, 1]), size)


def test_a_label_out_of_range_is_named_and_counted():
    with pytest.raises(DataError, match=r"toy/train: label 12 on 2 images, but there are 10 classes .*0 to 9"):
        check_labels("toy/train", torch.tensor([0, 12, 3, 12]), 10)
    split = Split(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, -1]))
    with pytest.raises(DataError, match=r"toy/test: label -1 on 1 image,"):
        Dataset("toy", ["a", "b"], None, None, split, "folders", "png")


def test_digits_are_the_whole_set_in_fixed_stratified_parts():
    first, again = digits.load(), digits.load()
    assert [len(s) for s in (first.train, first.val, first.test)] == [1168, 270, 359]
    assert first.image_shape == (1, 8, 8)
    assert first.classes == list("0123456789")
    assert (int(first.train.images.min()), int(first.train.images.max())) == (0, 255)
    assert set(torch.cat([s.images for s in (first.train, first.val, first.test)]).unique().tolist()) == {
        round(v * 255 / 16) for v in range(17)
    }
    assert first.test.labels.bincount().max() - first.test.labels.bincount().min() <= 2
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, digits.load(seed=1).test.images)
    assert digits.load(size=16).image_shape == (1, 16, 16)
    assert digits.load(val=0).val is None


def test_none_knows_classes_and_shape_without_an_image():
    data = none.load(classes=3, channels=3, size=32)
    assert (data.classes, data.num_classes, data.image_shape) == (["0", "1", "2"], 3, (3, 32, 32))
    assert data.train is data.val is data.test is None
    assert none.load(classes=["cat", "dog"], channels=1, size=8).classes == ["cat", "dog"]


def test_grey_and_size_agree_with_pillow():
    rgb = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in rgb]
    grey = torch.stack([torch.from_numpy(np.array(p.convert("L")))[None] for p in pictures])
    assert torch.equal(fit_to(rgb, size=28, channels=1), grey)
    for size in (32, 14):
        resized = [np.array(p.resize((size, size), Image.Resampling.BILINEAR)) for p in pictures]
        expected = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).int()
        assert (fit_to(rgb, size=size, channels=3).int() - expected).abs().max() <= 1
    assert torch.equal(fit_to(grey, size=28, channels=3), grey.repeat(1, 3, 1, 1))


def write_idx(folder, n_train=20, n_test=10):
    folder.mkdir(parents=True)
    pixels = {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">BBBBI", 0, 0, 8, 1, n)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
        pixels[part] = images
    return pixels


@pytest.mark.parametrize(
    ("name", "home", "first"), [("mnist", "MNIST", "0"), ("fashion_mnist", "FashionMNIST", "T-shirt/top")]
)
def test_idx_files_are_read(tmp_path, name, home, first):
    pixels = write_idx(tmp_path / home / "raw")
    data = files.load(name=name, root=tmp_path, size=28, channels=1, val=0.5)
    assert (data.layout, data.encoding, data.name) == ("torchvision", "raw", name)
    assert [len(s) for s in (data.train, data.val, data.test)] == [10, 10, 10]
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(pixels["t10k"]))
    assert data.test.labels.tolist() == list(range(10))
    assert data.classes[0] == first
    assert files.load(name=name, root=tmp_path, size=32, channels=3, val=0).train.images.shape == (20, 3, 32, 32)


def without_checksums(monkeypatch, cls):
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(cls, attribute, [[entry[0], None] for entry in getattr(cls, attribute)])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})


def write_cifar10(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    batches = {f"data_batch_{i}": 4 for i in range(1, 6)} | {"test_batch": 6}
    rows = {name: rng.integers(0, 256, (n, 3072), dtype=np.uint8) for name, n in batches.items()}
    for name, data in rows.items():
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [i % 10 for i in range(len(data))]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    return rows


def test_cifar10_batches_are_read_with_their_class_names(tmp_path, monkeypatch):
    without_checksums(monkeypatch, tv.CIFAR10)
    rows = write_cifar10(tmp_path)
    data = files.load(name="cifar10", root=tmp_path, size=32, channels=3, val=4)
    assert [len(s) for s in (data.train, data.val, data.test)] == [16, 4, 6]
    assert torch.equal(data.test.images, torch.from_numpy(rows["test_batch"]).view(6, 3, 32, 32))
    assert data.classes[9] == "class9"


def test_a_damaged_file_is_not_called_missing(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(DataError, match=r"cifar10: cannot read the training files in .*batches-py.*download=true"):
        files.load(name="cifar10", root=tmp_path, size=32, channels=3)


def test_cifar100_is_read(tmp_path, monkeypatch):
    without_checksums(monkeypatch, tv.CIFAR100)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, n in (("train", 8), ("test", 4)):
        data = np.full((n, 3072), 7, dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": [99 - i for i in range(n)]}))
    names = [f"fine{i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    data = files.load(name="cifar100", root=tmp_path, size=16, channels=1, val=2)
    assert (data.num_classes, data.image_shape, data.test.labels.tolist()) == (100, (1, 16, 16), [99, 98, 97, 96])


@pytest.mark.parametrize("home", ["", "svhn"])
def test_svhn_is_read_from_either_place(tmp_path, monkeypatch, home):
    from scipy.io import savemat

    parts = {part: [entry[0], entry[1], None] for part, entry in tv.SVHN.split_list.items()}
    monkeypatch.setattr(tv.SVHN, "split_list", parts)
    (tmp_path / home).mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
    for part in ("train", "test"):
        savemat(tmp_path / home / f"{part}_32x32.mat", {"X": pixels, "y": np.arange(1, 11)[:, None]})
    data = files.load(name="svhn", root=tmp_path, size=32, channels=3, val=3)
    assert torch.equal(data.test.images, torch.from_numpy(pixels).permute(3, 2, 0, 1))
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def write_usps(folder):
    folder.mkdir(exist_ok=True)
    for file in ("usps.bz2", "usps.t.bz2"):
        lines = [f"{i % 10 + 1} " + " ".join(f"{k + 1}:{-1 + 2 * (i % 2)}" for k in range(256)) for i in range(20)]
        (folder / file).write_bytes(bz2.compress("\n".join(lines).encode()))


@pytest.mark.parametrize("home", ["", "usps"])
def test_usps_is_read_from_either_place(tmp_path, home):
    write_usps(tmp_path / home)
    data = files.load(name="usps", root=tmp_path, size=16, channels=1, val=10)
    assert data.test.labels[:3].tolist() == [0, 1, 2]
    assert data.test.images[:, 0, 0, 0].tolist() == [0, 255] * 10
    assert data.layout == "torchvision"


def write_class_folders(root, names, parts=("train", "test"), ending="png"):
    for part in parts:
        for value, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for i in range(2):
                Image.new("L", (8, 8), 2 * value + i).save(root / part / name / f"{i}.{ending}")


def test_class_folders_stand_in_for_the_files(tmp_path):
    write_class_folders(tmp_path / "usps", list("0123456789"))
    data = files.load(name="usps", root=tmp_path, size=8, channels=1, val=0.5)
    assert (data.layout, data.encoding, data.name) == ("folders", "png", "usps")
    assert [len(s) for s in (data.train, data.val, data.test)] == [10, 10, 20]
    assert (data.test.images[:, 0, 0, 0] // 2).tolist() == data.test.labels.tolist()


def test_numbered_folders_get_the_real_names_and_numeric_order(tmp_path):
    write_class_folders(tmp_path / "fashion_mnist", list("0123456789"))
    assert files.load(name="fashion_mnist", root=tmp_path, size=8, channels=1, val=0).classes[9] == "Ankle boot"
    write_class_folders(tmp_path / "cifar100", [str(i) for i in range(100)])
    data = files.load(name="cifar100", root=tmp_path, size=8, channels=1, val=0)
    assert data.classes[2] == "2"
    assert (data.train.images[:, 0, 0, 0] // 2).tolist() == data.train.labels.tolist()


def test_a_set_with_a_class_missing_is_refused(tmp_path):
    write_class_folders(tmp_path / "usps", list("012345678"))
    with pytest.raises(DataError, match=r"usps holds 9 class folders, but usps has 10 classes.*image_folder"):
        files.load(name="usps", root=tmp_path, size=8, channels=1)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("usps", "usps.bz2"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_a_missing_set_says_where_it_looked_and_both_ways_out(tmp_path, name, file):
    with pytest.raises(DataError) as caught:
        files.load(name=name, root=tmp_path, size=32, channels=3)
    message = str(caught.value)
    assert f"{name} is not under {tmp_path}: {tmp_path / file} is missing" in message
    assert f"{tmp_path / name}/{{train,test}}/<class>/" in message
    assert "data.download=true" in message
    assert "\n" not in message


def test_of_incomplete_files_the_missing_one_is_named(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is missing"):
        files.load(name="mnist", root=tmp_path, size=28, channels=1)
    write_usps(tmp_path / "usps")
    (tmp_path / "usps" / "usps.t.bz2").unlink()
    with pytest.raises(DataError, match=r"usps/usps\.t\.bz2 is missing"):
        files.load(name="usps", root=tmp_path, size=16, channels=1)


def test_a_download_is_torchvisions_and_its_failure_is_one_line(tmp_path, monkeypatch):
    def fetched(self):
        write_idx(tmp_path / "a" / "MNIST" / "raw")
        monkeypatch.setattr(tv.MNIST, "download", lambda self: None)

    monkeypatch.setattr(tv.MNIST, "download", fetched)
    assert len(files.load(name="mnist", root=tmp_path / "a", size=28, channels=1, val=4, download=True).train) == 16

    def refused(self):
        raise RuntimeError("Error downloading train-images:\nTried a mirror, got:\nno route")

    monkeypatch.setattr(tv.MNIST, "download", refused)
    with pytest.raises(DataError, match=r"mnist could not be downloaded into .*no route.*MNIST/raw.*<class>") as caught:
        files.load(name="mnist", root=tmp_path / "b", size=28, channels=1, download=True)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"imagenet: expected one of mnist, .*svhn"):
        files.load(name="imagenet", root=tmp_path, size=32, channels=3)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "size", "layout", "counts"),
    [("mnist", 28, "torchvision", [55000, 5000, 10000]), ("usps", 16, "folders", [6591, 700, 2007])],
)
def test_the_real_sets_have_their_published_sizes(name, size, layout, counts):
    root = os.environ.get("KD_DATA_DIR")
    if not root:
        pytest.skip("KD_DATA_DIR is not set")
    data = files.load(name=name, root=root, size=size, channels=1, val=counts[1])
    assert (data.layout, [len(s) for s in (data.train, data.val, data.test)]) == (layout, counts)
    assert data.classes == list("0123456789")


@pytest.mark.realdata
def test_mnist_at_32_pixels_is_pillows_mnist_at_32_pixels():
    root = os.environ.get("KD_DATA_DIR")
    if not root:
        pytest.skip("KD_DATA_DIR is not set")
    images = files.load(name="mnist", root=root, size=28, channels=1).test.images[:500]
    pictures = [Image.fromarray(x[0].numpy()).resize((32, 32), Image.Resampling.BILINEAR) for x in images]
    expected = torch.from_numpy(np.stack([np.array(p) for p in pictures])).unsqueeze(1)
    assert (fit_to(images, size=32, channels=1).int() - expected.int()).abs().max() <= 1
