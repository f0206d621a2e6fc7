"""The student as ONNX says what the student says, and tells what it is."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_lightning.cli.export import images_to_check, main
from kd_lightning.core.extras import install
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results import onnx_export as export
from kd_lightning.results.onnx_export import to_onnx
from kd_lightning.results.student_files import load_student, save_single, save_student

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "deep" / "student.onnx"
    assert main([str(finished), "--onnx", str(file)]) == 0
    return file


def answers(file: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_any_batch_gets_the_students_logits_from_images_in_data_units(exported: Path, finished: Path, n: int) -> None:
    student, x = load_student(finished), torch.rand(n, 1, 8, 8)
    got = answers(exported, x.numpy())
    assert got.shape == (n, 10)
    np.testing.assert_allclose(got, student(x).detach().numpy(), atol=1e-4)


def test_the_file_carries_what_a_user_needs_and_nothing_of_the_machine(exported: Path, finished: Path) -> None:
    model, card = onnx.load(exported), json.loads((finished / "student.json").read_text())
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == card["classes"]
    assert json.loads(told["image_shape"]) == [1, 8, 8]
    assert json.loads(told["accuracy"]) == card["metrics"]["test/accuracy"]
    assert told["teacher"] == card["teacher"]
    assert {"kd_lightning", "torch", "format_version"} <= told.keys()
    assert str(Path(export.__file__).parent).encode() not in exported.read_bytes()
    assert not exported.with_suffix(".onnx.data").exists()


def test_the_check_uses_the_runs_own_test_images(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = load_student(finished).card
    images, kind = images_to_check(finished, card)
    assert kind == "359 test images of digits"
    assert images.dtype == torch.uint8
    assert images.float().std() > 50


def test_without_data_random_images_are_taken_and_it_says_so(finished: Path, tmp_path: Path) -> None:
    for name in ("student.json", "student.safetensors"):
        shutil.copy(finished / name, tmp_path / name)
    images, kind = images_to_check(tmp_path, load_student(tmp_path).card)
    assert images.shape == (64, 1, 8, 8)
    assert kind.startswith("64 random images, because: ")


def test_a_difference_is_refused_and_leaves_no_file(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "predict", lambda net, x: torch.zeros(len(x), 10))
    student, file = load_student(finished), tmp_path / "student.onnx"
    with pytest.raises(UserError, match=r"is not written: its logits differ .* less than 1e-04 is wanted"):
        to_onnx(student, file, torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())


def test_a_network_with_a_turn_in_its_way_has_no_onnx_form(tmp_path: Path, finished: Path) -> None:
    class Turn(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :10] if float(x.sum()) > 0 else x.flatten(1)[:, 1:11]

    student = load_student(finished)
    student.net = Turn()
    with pytest.raises(UserError, match="this network has no ONNX form: "):
        to_onnx(student, tmp_path / "student.onnx", torch.zeros(3, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_line(
    package: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(finished), "--onnx", str(tmp_path / "student.onnx")]) == 2
    assert capsys.readouterr().err == f"kd-export: ONNX needs {package}: {install('export')}\n"


def test_one_safetensors_file_is_a_whole_student(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "student.safetensors"
    assert main([str(finished), "--safetensors", str(file)]) == 0
    student, x = load_student(file), torch.rand(3, 1, 8, 8)
    assert torch.equal(student(x), load_student(finished)(x))
    assert student.card == load_student(finished).card


def test_a_weights_file_without_card_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no student that kd-export wrote"):
        load_student(finished / "student.safetensors")
    (tmp_path / "x").write_text("nothing")
    with pytest.raises(UserError, match="no student that kd-export wrote"):
        load_student(tmp_path / "x")


def test_a_card_inside_names_no_foreign_code(finished: Path, tmp_path: Path) -> None:
    student = load_student(finished)
    student.card = {**student.card, "network": {"_target_": "os.system", "_args_": [f"touch {tmp_path / 'touched'}"]}}
    save_single(student, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="is not on the allowlist"):
        load_student(tmp_path / "bad.safetensors")
    assert not (tmp_path / "touched").exists()


def spoiled(finished: Path, folder: Path, **files: str) -> Path:
    shutil.copytree(finished, folder)
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return folder


BAD = {
    "an empty folder": (None, "holds no student: student.json is missing. Name the folder of a finished run"),
    "half a card": ({"student": '{"format_version": 1, "netw'}, r"student\.json cannot be read .*perhaps half-written"),
    "no card": ({"student": "[1]"}, "is not the card of a student"),
    "another format": ({"student": '{"format_version": 99}'}, "has format_version 99, this kd_lightning reads 1"),
    "a poor card": ({"student": '{"format_version": 1}'}, "lacks network, classes, image_shape, mean, std"),
    "a failed run": (
        {"result": '{"format_version": 1, "status": "failed", "reason": "the loss is NaN\\nmore"}'},
        "holds no student, its run failed: the loss is NaN$",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_run_folders_are_one_line(
    case: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, expected = BAD[case]
    folder = tmp_path / "run"
    if files is None:
        folder.mkdir()
    else:
        spoiled(finished, folder, **files)
    with pytest.raises(UserError, match=expected):
        load_student(folder)
    assert main([str(folder), "--safetensors", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("kd-export: ")
    assert said.count("\n") == 1


def test_a_stopped_run_without_student_says_why(finished: Path, tmp_path: Path) -> None:
    folder = spoiled(
        finished, tmp_path / "run", result='{"format_version": 1, "status": "stopped", "reason": "Ctrl-C"}'
    )
    assert load_student(folder)
    (folder / "student.json").unlink()
    with pytest.raises(UserError, match="its run stopped: Ctrl-C"):
        load_student(folder)


def test_a_card_of_other_widths_does_not_load(finished: Path, tmp_path: Path) -> None:
    card = json.loads((finished / "student.json").read_text())
    card["network"]["widths"] = [4, 4, 4]
    folder = spoiled(finished, tmp_path / "run", student=json.dumps(card))
    with pytest.raises(UserError, match="does not fit SmallConvNet"):
        load_student(folder)
    card["network"] = {"_target_": "kd_lightning.networks.classifiers.small.OldNet"}
    (folder / "student.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"there is no kd_lightning\.networks\.classifiers\.small\.OldNet here"):
        load_student(folder)
    card["network"] = json.loads((finished / "student.json").read_text())["network"] | {"depth": 3}
    (folder / "student.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"its network cannot be built here .*depth"):
        load_student(folder)


def test_nothing_to_write_is_a_mistake(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(finished)])
    assert "say what to write: --onnx FILE" in capsys.readouterr().err


def test_a_network_given_by_hand_takes_the_weights(finished: Path, tmp_path: Path) -> None:
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    card = {**load_student(finished).card, "network": {"_target_": "kd_lightning.api.held", "key": "gone"}}
    student = Normalized(own, mean=card["mean"], std=card["std"])
    save_student(student, tmp_path, card)
    with pytest.raises(UserError, match=r"handed over in memory; load_student\(\.\.\., network=YOURS\)"):
        load_student(tmp_path)
    fresh, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), torch.rand(2, 1, 8, 8)
    assert torch.equal(load_student(tmp_path, network=fresh)(x), student(x))
