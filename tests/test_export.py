"""A student's two files are all that is needed to use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results.student_files import load_student, save_student

NETWORK = {"_target_": "kd_lightning.networks.classifiers.small.SmallConvNet", "widths": [4, 8], "num_classes": 3}


def saved(folder: Path, **card: Any) -> Normalized:
    torch.manual_seed(0)
    student = Normalized(SmallConvNet(widths=(4, 8), num_classes=3), mean=[0.2], std=[0.5])
    content = {
        "network": NETWORK,
        "classes": ["ant", "bee", "cat"],
        "image_shape": [1, 8, 8],
        "mean": [0.2],
        "std": [0.5],
    }
    save_student(student, folder, content | card)
    return student


def test_round_trip(tmp_path: Path) -> None:
    student, x = saved(tmp_path), torch.rand(5, 1, 8, 8)
    loaded = load_student(tmp_path)
    assert torch.equal(loaded(x), student.eval()(x))
    assert not loaded.training
    assert loaded.card["classes"] == ["ant", "bee", "cat"]


def test_channels_last_weights_are_saved_as_usual(tmp_path: Path) -> None:
    student, x = saved(tmp_path), torch.rand(5, 1, 8, 8)
    save_student(
        student.to(memory_format=torch.channels_last), tmp_path, json.loads((tmp_path / "student.json").read_text())
    )
    torch.testing.assert_close(load_student(tmp_path)(x), student.eval()(x))


def test_missing_file_and_another_format(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"student\.json is missing\. Name the folder of a finished run"):
        load_student(tmp_path)
    saved(tmp_path, format_version=99)
    with pytest.raises(UserError, match="has format_version 99, this kd_lightning reads 1"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "kd_lightning.run.run.subprocess.Popen",
        "kd_lightning.networks.classifiers.small.nn.modules.module.torch.hub.load",
        "torch.nn.modules.module.warnings.warn",
        "torch.nn.functional.relu",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_is_no_network_of_ours_is_refused_before_it_is_called(tmp_path: Path, target: str, nested: bool) -> None:
    bad = {"_target_": target, "_args_": [f"touch {tmp_path / 'touched'}"]}
    saved(tmp_path, network=NETWORK | {"widths": [bad]} if nested else bad)
    with pytest.raises(UserError, match=r"is not on the allowlist; load_student\(\.\.\., trust=True\)"):
        load_student(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_trusted_by_name_or_by_word(tmp_path: Path) -> None:
    saved(tmp_path, network={"_target_": "torch.nn.Flatten"})
    with pytest.raises(UserError, match="does not fit Flatten"):
        load_student(tmp_path)
    saved(tmp_path, network=NETWORK | {"widths": {"_target_": "builtins.list", "_args_": [[4, 8]]}})
    assert load_student(tmp_path, trust=True).card["classes"][0] == "ant"


@pytest.mark.slow
def test_loading_needs_no_trainer(tmp_path: Path) -> None:
    saved(tmp_path)
    code = (
        "import sys; from kd_lightning.results.student_files import load_student; load_student(sys.argv[1]); "
        "assert 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_other_images_than_it_was_trained_on_are_one_line(tmp_path: Path) -> None:
    saved(tmp_path)
    student = load_student(tmp_path)
    x = torch.rand(2, 1, 8, 8)
    assert student(x).shape == (2, 3)
    for wrong, said in {
        "uint8": ((x * 255).byte(), r"takes images \(N, 1, 8, 8\) in \[0, 1\], float32, got uint8: x\.float\(\) / 255"),
        "half": (x.half(), "got float16"),
        "pixels": (x * 255, r"got \[.*it normalises them itself"),
        "normalised": ((x - 0.5) / 0.2, "it normalises them itself"),
        "size": (torch.rand(2, 1, 16, 16), r"got \(2, 1, 16, 16\): student\.resize = True resizes them to 1x8x8"),
        "channels": (torch.rand(2, 3, 8, 8), r"got \(2, 3, 8, 8\)"),
        "no number": (x * float("nan"), "nan"),
    }.values():
        with pytest.raises(UserError, match=said) as refusal:
            student(wrong)
        assert "\n" not in str(refusal.value)
    student.resize = True
    assert student(torch.rand(2, 1, 16, 16)).shape == (2, 3)
