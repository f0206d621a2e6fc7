"""Images that people bring: without labels, with labels in a table or in their names, and sets larger than memory."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image
from torch import nn

from kd_lightning.cli import evaluate
from kd_lightning.core import mapped as maps
from kd_lightning.core.inference import predict
from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.datasets import decoding, file_names, folder, image_files, saved, table, unlabelled
from kd_lightning.data.load import dataset_digest
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.table_rows import saved_names
from kd_lightning.errors import ConfigError, DataError, UserError
from kd_lightning.sources.context import Context
from kd_lightning.sources.queried import Queried
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.white_box import FrozenTeacher


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty grey pictures ``pics/LEVEL_NUMBER.png``, every third a folder deeper."""
    for i in range(20):
        path = tmp_path / "pics" / ("deep" if i % 3 == 0 else "") / f"{10 * i}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 8), 10 * i).save(path)
    return tmp_path / "pics"


def written(file: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return file


def rows_for(pictures: Path) -> list[list[Any]]:
    paths = sorted(pictures.rglob("*.png"), key=lambda path: int(path.stem.partition("_")[0]))
    return [[path.relative_to(pictures.parent), int(path.stem.partition("_")[0])] for path in paths]


@pytest.mark.parametrize("kind", ["folder", "pattern", "list"])
def test_images_without_labels(kind: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# mine\n" + "\n".join(str(row[0]) for row in rows_for(pictures)))
    (pictures / "notes.heic").write_text("")
    files = {"folder": pictures, "pattern": f"{pictures}/**/*.*", "list": tmp_path / "list.txt"}[kind]
    data = unlabelled.load(files=files, classes=["a", "b"], size=8, channels=1, test=4)
    assert (len(data.train), len(data.test), data.classes) == (16, 4, ["a", "b"])
    assert data.train.labels is None
    assert "16 images without labels for train, 4 images without labels for test (held out" in data.found
    assert dict(data.unread) == ({} if kind == "list" else {".heic": 1})
    assert dataset_digest(data) != dataset_digest(unlabelled.load(files=files, classes=["a", "b"], size=8, test=4))


def test_images_without_labels_are_judged_on_class_folders(pictures: Path, tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "judged" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "judged" / name / "0.png")
    how = {"files": pictures, "size": 8, "channels": 1, "test": str(tmp_path / "judged")}
    data = unlabelled.load(classes=["b", "c", "a"], **how)
    assert (data.test.labels.tolist(), data.num_classes, len(data.train)) == ([2, 0], 3, 20)
    assert unlabelled.load(classes=2, **how).test.labels.tolist() == [0, 1]
    assert "20 images without labels for train" in data.found
    assert "judged: 2 images for train" in data.found
    with pytest.raises(DataError, match=r"holds a class b, none of the teacher's: a, c"):
        unlabelled.load(classes=["a", "c"], **how)
    with pytest.raises(DataError, match=r"has 2 classes, data\.num_classes=3"):
        unlabelled.load(classes=3, **how)


def test_labels_are_refused_where_there_are_none(tmp_path: Path) -> None:
    images = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    data = Dataset("mine", ["a", "b"], images, None, None, "files", "png")
    context = Context(data, None, Store(tmp_path), {}, [0.5], [0.5])
    assert context.real(labels=False) is images
    with pytest.raises(DataError, match=r"data=mine has no labels, and these are trained on: .* method\.label=0"):
        context.real()
    with pytest.raises(UserError, match=r"data=mine has no labels to measure against: kd-predict tells"):
        evaluate._measured(data)


def test_a_table_of_classes(pictures: Path, tmp_path: Path) -> None:
    rows = [[path, "light" if level > 90 else "dark", ["train", "Testing"][i % 4 == 0]]
            for i, (path, level) in enumerate(rows_for(pictures))]  # fmt: skip
    file = written(tmp_path / "labels.csv", ["file_name", "class", "split"], rows)
    data = table.load(file=file, size=8, channels=1, val=0.2)
    assert (data.classes, len(data.train), len(data.val), len(data.test)) == (["dark", "light"], 12, 3, 5)
    for split in (data.train, data.val, data.test):
        assert torch.equal(split.labels, (split.images[:, 0, 0, 0] > 90).long())
    turned = table.load(file=file, size=8, channels=1, classes=["light", "dark"])
    assert torch.equal(turned.test.labels, 1 - data.test.labels)


def test_a_table_of_numbers_and_numbers_in_names(pictures: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "labels.csv", ["path", "level"], rows_for(pictures))
    task = Regression(low=0, high=200, unit="levels")
    told = table.load(file=file, size=8, channels=1, task=task, label_column="level")
    seen = file_names.load(root=pictures, pattern=r"^(?P<label>\d+)_", size=8, channels=1, task=task)
    for data in (told, seen):
        assert (len(data.train), len(data.val), len(data.test)) == (14, 2, 4)
        assert torch.equal(data.train.labels, data.train.images[:, 0, 0, 0].float())
    assert "numbers from 0 to 200 levels" in told.found
    chosen = composed(
        *("data=table", f"data.file={file}", "data.label_column=level", "data.labels=numbers", "data.low=0"),
        *("data.high=200", "data.unit=levels", "method=kd", "teacher=small_conv", "student=small_conv"),
    )
    assert (chosen.data.num_classes, chosen.data.load.task.high) == (1, 200)


WRONG: dict[str, tuple[dict[str, Any], list[list[Any]], str]] = {
    "no column": ({"label_column": "label"}, [], r"no column label; there are path, kind: set data\.label_column=NAME"),
    "unusual column": ({}, [], r"none of the columns is called label, .*; there are path, kind"),
    "missing file": ({"label_column": "kind"}, [["x.png", 1]], r"row 22: there is no file .*x\.png.*data\.root=DIR"),
    "no label": ({"label_column": "kind"}, [["pics/10_1.png", ""]], r"row 22: no label; data\.skip_bad=true"),
    "unknown class": ({"label_column": "kind", "classes": ["0", "10"]}, [], r"the label 20 is none of the 2 classes"),
    "no number": (
        {"label_column": "kind", "task": Regression(low=0, high=200, unit="")},
        [["pics/10_1.png", "much"]],
        r"row 22: the label 'much' is no number; data\.labels=classes",
    ),
}


@pytest.mark.parametrize(("how", "more", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_table_is_said(
    how: dict[str, Any], more: list[list[Any]], said: str, pictures: Path, tmp_path: Path
) -> None:
    file = written(tmp_path / "t.csv", ["path", "kind"], [*rows_for(pictures), *more])
    with pytest.raises(DataError, match=said):
        table.load(file=file, size=8, **how)


def test_rows_that_cannot_be_read_are_left_out_and_counted(pictures: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "t.csv", ["path", "label"], [*rows_for(pictures), ["x.png", 3], ["pics/10_1.png", ""]])
    data = table.load(file=file, size=8, skip_bad=True, test=0, val=0)
    assert (data.skipped, len(data.train)) == (2, 20)


def test_a_table_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*none\.csv: set data\.file"):
        table.load(file=tmp_path / "none.csv", size=8)
    (tmp_path / "empty.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="has no rows"):
        table.load(file=tmp_path / "empty.csv", size=8)
    with pytest.raises(DataError, match=r"pattern=\(: .*expected a regular expression"):
        file_names.load(root=tmp_path, pattern="(", size=8)
    with pytest.raises(DataError, match="has no group called label"):
        file_names.load(root=tmp_path, pattern="a", size=8)
    with pytest.raises(DataError, match=r"matches no file in .*, which holds empty\.csv"):
        file_names.load(root=tmp_path, pattern="(?P<label>x)", size=8)


def test_parquet_is_read_as_csv_is(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_for(pictures)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"Parquet needs pyarrow: (uv )?pip install 'kd-lightning\[parquet\]'"):
        table.load(file=tmp_path / "t.parquet", size=8)
    monkeypatch.undo()
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"path": [str(path) for path, _ in rows], "label": [level > 90 for _, level in rows]}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    data = table.load(file=tmp_path / "t.parquet", size=8, channels=1)
    assert (data.classes, len(data.test)) == (["False", "True"], 4)


@pytest.mark.parametrize(
    ("resize", "expected"),
    [("crop", [3, 3, 12, 12]), ("stretch", [0, 8, 8, 15]), ("pad", [0, 0, 0, 0]), ("imagenet", [4, 4, 11, 11])],
)
def test_how_images_of_another_shape_are_resized(resize: Any, expected: list[int], tmp_path: Path) -> None:
    """A ramp from left to right, 16 wide and 8 high, brought to 8x8: which part of it is seen."""
    ramp = np.repeat(np.arange(16, dtype=np.uint8)[None] * 16, 8, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    pixels = image_files.decode(tmp_path / "ramp.png", size=8, channels=1, resize=resize)[0].astype(int)
    assert pixels.shape == (8, 8)
    left, right = pixels[4, 0] / 16, pixels[4, -1] / 16
    if resize == "pad":  # all of it, at half its size, with black above and below
        assert pixels[[0, 1, 6, 7]].max() == 0
        assert (left < 1, right > 14) == (True, True)
    else:
        assert (left, right) == pytest.approx((expected[0] + 0.5, expected[3] - 0.5), abs=1.1)
    with pytest.raises(ConfigError, match=r"data\.resize=fit: expected one of crop, stretch, pad, imagenet"):
        folder.load(root=_two_classes(tmp_path), size=8, resize="fit", val=0)  # type: ignore[arg-type]


def _two_classes(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        for i in range(10):
            Image.new("L", (9, 9), 10 * i + (name == "b")).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def test_a_set_on_disk_is_the_set_in_memory(tmp_path: Path) -> None:
    root, store = _two_classes(tmp_path), Store(tmp_path / "store")
    (root / "a" / "bad.png").write_bytes(b"x")
    how: dict[str, Any] = {"root": root, "size": 8, "channels": 1, "val": 4, "store": store, "skip_bad": True}
    memory, disk = folder.load(**how), folder.load(**how, cache="disk")
    assert not maps.is_mapped(memory.train.images)
    for part in ("train", "val"):
        one, other = getattr(memory, part), getattr(disk, part)
        assert maps.is_mapped(other.images)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert dataset_digest(memory) == dataset_digest(disk)
    loaders = [TensorLoader(d.train.images, d.train.labels, batch_size=4, shuffle=True, seed=3) for d in (memory, disk)]
    for mine, theirs in zip(*loaders, strict=True):
        assert torch.equal(mine.x, theirs.x)
    answers = [predict(lambda x: x.mean((1, 2, 3)), d.train.images) for d in (memory, disk)]
    assert torch.equal(*answers)
    (pool,) = store.root.glob("images-*/pixels.uint8")
    pool.write_bytes(pool.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"pixels\.uint8 cannot be read .*bytes, expected"):
        folder.load(**how, cache="disk")


def test_a_set_on_disk_is_asked_about_where_it_lies(tmp_path: Path) -> None:
    root, store = _two_classes(tmp_path), Store(tmp_path / "store")
    disk = folder.load(root=root, size=8, channels=1, val=4, store=store, cache="disk")
    teacher = FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    context = Context(disk, teacher, store, {}, [0.5], [0.5])
    assert Queried(images=None, batch_size=4).prepare(context).streamed
    assert not Queried(images=5, batch_size=4).prepare(context).streamed


@pytest.mark.parametrize(("side", "most"), [(32, 500), (64, 500), (224, 41)])
def test_large_images_are_answered_a_few_at_a_time(side: int, most: int) -> None:
    seen: list[int] = []

    def net(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x[:, :, 0, 0]

    assert len(predict(net, torch.zeros(510, 1, side, side, dtype=torch.uint8))) == 510
    assert max(seen) == most


def test_nothing_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder.load(root=_two_classes(tmp_path), size=8, store=store, cache="none")
    assert not list(tmp_path.glob("store/images-*"))
    with pytest.raises(ConfigError, match=r"data\.cache=ram: expected one of memory, disk, none"):
        folder.load(root=tmp_path / "set", size=8, cache="ram")  # type: ignore[arg-type]


def test_a_set_larger_than_memory_is_refused_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "free_memory", lambda: 1_000_000)
    root, store = _two_classes(tmp_path), Store(tmp_path / "store")
    with pytest.raises(DataError, match=r"20 images of 3x224x224 .* need 6\.0 MB of memory .* data\.cache=disk"):
        folder.load(root=root, size=224, store=store)
    assert len(folder.load(root=root, size=224, store=store, cache="disk").train) == 18


GROWTH = """
import sys
import torch
from kd_lightning.core.mapped import let_go, mapped
from kd_lightning.data.loader import TensorLoader
images = mapped(sys.argv[1], (int(sys.argv[2]), 3, 64, 64))
def peak():  # of this process: getrusage's begins with that of the one it was forked from
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before = peak()
for batch in TensorLoader(images, None, batch_size=64, shuffle=True):
    pass
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    file = tmp_path / "pixels"
    with file.open("wb") as out:
        out.truncate(12_000 * 3 * 64 * 64)  # 147 MB, of zeros
    command = [sys.executable, "-c", GROWTH, str(file), "12000"]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 60_000, "KiB: less than half of the file"


def test_a_saved_set_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"holds no dataset_info\.json: expected a folder that save_to_disk wrote"):
        saved.load(root=tmp_path, size=8)
    (tmp_path / "dataset_info.json").write_text('{"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}')
    assert saved_names(tmp_path) == ["a", "b"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"need its package: (uv )?pip install 'kd-lightning\[datasets\]'"):
        saved.load(root=tmp_path, size=8)
    monkeypatch.undo()
    theirs = pytest.importorskip("datasets")
    pictures = [Image.new("L", (12, 8), 10 * i) for i in range(10)]
    kinds = theirs.Features({"picture": theirs.Image(), "label": theirs.ClassLabel(names=["a", "b"])})
    content = {"picture": pictures, "label": [int(i > 4) for i in range(10)]}
    theirs.Dataset.from_dict(content, features=kinds).save_to_disk(tmp_path / "set")
    data = saved.load(root=tmp_path / "set", size=8, channels=1, image_column="picture")
    assert (data.classes, len(data.train), len(data.val), len(data.test)) == (["a", "b"], 7, 1, 2)
    assert torch.equal(data.train.labels, (data.train.images[:, 0, 0, 0] > 45).long())
