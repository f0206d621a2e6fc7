"""What the commands say about files and about other data."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.cli import evaluate, predict
from kd_lightning.data.datasets import image_files
from kd_lightning.data.datasets.digits import load as load_digits
from kd_lightning.errors import UserError
from kd_lightning.results.student_files import load_student


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten digits as PNG files in one folder per class, and the same in RGB and larger."""
    test = load_digits().test
    assert test is not None
    for i in range(40):
        path = tmp_path / "pictures" / str(int(test.labels[i])) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[i, 0].numpy()).save(path)
    return tmp_path / "pictures"


def rows(file: Path) -> list[list[str]]:
    with file.open(newline="") as content:
        return list(csv.reader(content))


def test_every_file_gets_the_students_class_and_probability(
    finished: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([str(finished), str(pictures), "--csv", str(tmp_path / "out.csv")]) == 0
    header, *found = rows(tmp_path / "out.csv")
    assert header == ["file", "class", "confidence"]
    assert [row[0] for row in found] == sorted(str(p) for p in pictures.rglob("*.png"))
    student = load_student(finished)
    for file, label, confidence in found:
        pixels = torch.from_numpy(np.array(Image.open(file)))[None, None].float() / 255
        expected, place = student(pixels).detach().softmax(1).max(1)
        assert label == student.card["classes"][int(place)]
        assert float(confidence) == pytest.approx(float(expected), abs=1e-4)
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out.csv'}: 40 images\n"


def test_images_are_cut_as_training_images_are(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)).save(file)
    student = load_student(finished)
    pixels = torch.from_numpy(image_files.decode(file, size=8, channels=1))[None].float() / 255
    (prediction,) = predict.predictions(student, [file])
    assert prediction.confidence == pytest.approx(float(student(pixels).detach().softmax(1).max()), abs=1e-5)


def test_damaged_files_are_named_and_the_others_go_on(
    finished: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted(pictures.rglob("*.png"))
    good[1].write_text("no image")
    assert predict.main([str(finished), *map(str, good[:4])]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"kd-predict: cannot decode {good[1]}: ")
    assert said.err.count("\n") == 1
    assert [line.split()[-1] for line in said.out.splitlines()] == [str(good[0]), str(good[2]), str(good[3])]


def test_order_and_files_survive_small_batches(finished: Path, pictures: Path) -> None:
    student, files = load_student(finished), predict.image_files([pictures])
    files[3].write_text("")
    whole = list(predict.predictions(student, files))
    pieces = list(predict.predictions(student, files, batch_size=1))
    assert [(p.file, p.label) for p in pieces] == [(p.file, p.label) for p in whole]
    assert [p.file for p in whole if p.problem] == [files[3]]


@pytest.mark.parametrize(("make", "expected"), [(True, "no image in"), (False, "there is no file or folder")])
def test_nothing_to_look_at(
    finished: Path, tmp_path: Path, make: bool, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if make:
        (tmp_path / "x").mkdir()
    assert predict.main([str(finished), str(tmp_path / "x")]) == 2
    assert expected in capsys.readouterr().err


def test_no_student_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(tmp_path / "none"), "x.png"]) == 2
    assert evaluate.main([str(tmp_path / "none"), "data=digits"]) == 2
    assert capsys.readouterr().err.count("there is no folder") == 2


def test_the_same_data_give_the_runs_own_accuracy(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = load_student(finished)
    found = evaluate.evaluate_on(student, evaluate.compose_data(["data=digits"], student.card))
    assert found.score == pytest.approx(student.card["metrics"]["test/accuracy"], abs=1e-6)
    assert found.n == sum(n for n, _ in found.parts.values()) == 359
    hits = sum(n * a for n, a in found.parts.values() if a is not None)
    assert hits / found.n == pytest.approx(found.score)
    assert evaluate.main([str(finished), "data=digits"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["all", "359", f"{found.score:.4f}"]


def test_other_data_are_served_as_the_student_wants_them(finished: Path, pictures: Path) -> None:
    for file in pictures.rglob("*.png"):
        Image.open(file).convert("RGB").resize((16, 16)).save(file)
    student = load_student(finished)
    cfg = evaluate.compose_data(["data=image_folder", f"data.root={pictures}"], student.card)
    assert (cfg.data.size, cfg.data.channels) == (8, 1)
    found = evaluate.evaluate_on(student, cfg)
    assert found.n == 40
    assert "no test part" in found.images


def test_data_that_cannot_be_asked_for_a_size_are_resized(finished: Path) -> None:
    student = load_student(finished)
    card = {**student.card, "image_shape": [3, 16, 16], "mean": [0.3] * 3, "std": [0.3] * 3}
    seen = []

    class Look(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.shape[1:])
            return torch.zeros(len(x), 10)

    look = Look()
    look.card = card  # type: ignore[assignment]
    evaluate.evaluate_on(look, evaluate.compose_data(["data=digits"], card))  # type: ignore[arg-type]
    assert set(seen) == {(3, 16, 16)}


def test_classes_are_matched_by_name_where_they_can_be(finished: Path, pictures: Path) -> None:
    student = load_student(finished)
    cfg = evaluate.compose_data(["data=image_folder", f"data.root={pictures}"], student.card)
    plain = evaluate.evaluate_on(student, cfg)
    student.card = {**student.card, "classes": student.card["classes"][::-1]}
    turned = evaluate.evaluate_on(student, cfg)
    assert turned.note == "classes matched by name, their order differs"
    assert [turned.parts[c][0] for c in "0123456789"] == [plain.parts[c][0] for c in "0123456789"]
    student.card = {**student.card, "classes": [f"c{i}" for i in range(10)]}
    other = evaluate.evaluate_on(student, cfg)
    assert other.score == plain.score
    assert other.note.endswith("'c0' of the student is '0' here")


WRONG = {
    "data=digts": "data=digts: there is no data called digts; did you mean data=digits",
    "data=digits data.roto=3": "data.roto: nothing reads this setting",
    "data=digits data.size=9": "data.size=9: the student takes size 8; leave data.size out",
    "data=digits method=kd": "method=kd: nothing is trained here",
    "data=cifar100": "the student knows 10 classes, these data have 100",
    "data=none": "data=none holds no image to measure on",
    "artifacts.reuse=false": "say which data: data=NAME",
    "data=digits,mnist": "data=digits,mnist: ",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_wrong_overrides_are_named(overrides: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(finished), *overrides.split()]) == 2
    said = capsys.readouterr().err
    assert WRONG[overrides] in said
    assert said.count("data.roto") <= 1


@pytest.mark.slow
def test_two_faults_are_named_together(finished: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)cannot run:.*data=digts.*data\.roto"):
        evaluate.compose_data(["data=digts", "data.roto=1"], load_student(finished).card)
