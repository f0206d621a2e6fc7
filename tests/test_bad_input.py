"""Whatever goes wrong in a run ends in one clear message with what to do, or in a warning."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DAFL, TINY, Outcome
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd_lightning.errors import DataError, TeacherError, TrainingError
from kd_lightning.networks.generators import Generator

Tiny = Callable[..., Outcome]


def bare(teacher_file: Path) -> dict[str, Tensor]:
    """The network's own weights, without the statistics of its images."""
    state = load_file(teacher_file)
    return {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_weights(suffix: str, tiny: Tiny, teacher_file: Path, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(bare(teacher_file), path) if suffix == ".safetensors" else torch.save(bare(teacher_file), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(TeacherError, match="is truncated, corrupt"):
        tiny(f"teacher.weights={path}")
    result = json.loads((tmp_path / "run0/result.json").read_text())
    assert result["status"] == "failed"
    assert "truncated" in result["reason"]


def test_weights_of_another_network(tiny: Tiny, teacher_file: Path) -> None:
    with pytest.raises(TeacherError, match=r"shape \(32, 1, 3, 3\), the network has \(8, 1, 3, 3\)"):
        tiny(f"teacher.weights={teacher_file}", "teacher=small_conv_narrow")


def test_teacher_near_chance(tiny: Tiny, teacher_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({k: torch.randn_like(v) for k, v in bare(teacher_file).items()}, tmp_path / "w.safetensors")
    settings = (f"teacher.weights={tmp_path / 'w.safetensors'}", "teacher.check=true")
    with pytest.raises(TeacherError, match="nothing can be learned from it"):
        tiny(*settings)
    assert tiny(*settings, "teacher.check=false")["status"] == "ok"


def test_teacher_with_another_normalisation(tiny: Tiny, teacher_file: Path, tmp_path: Path) -> None:
    state = bare(teacher_file)
    # the same network on images in [0, 255]
    weight = state["features.0.weight"]
    state["features.0.bias"] -= weight.sum((1, 2, 3)) * 0.3053 / 0.3761
    state["features.0.weight"] = weight / 0.3761 / 255
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match=r"images in \[0, 255\]: (teacher.mean=\S+) (teacher.std=\S+)\.") as refusal:
        tiny(f"teacher.weights={tmp_path / 'w.safetensors'}", "teacher.check=true")
    hints = re.search(r"(teacher.mean=\S+) (teacher.std=\S+)\.", str(refusal.value)).groups()
    result = tiny(f"teacher.weights={tmp_path / 'w.safetensors'}", "teacher.check=true", *hints)
    assert result["metrics"]["teacher/accuracy"] > 0.85  # the border of an image is no longer zero inside the network


def test_teacher_of_inverted_images(tiny: Tiny, teacher_file: Path, tmp_path: Path) -> None:
    state = bare(teacher_file)
    state["features.0.bias"] += state["features.0.weight"].sum((1, 2, 3)) * (1 - 2 * 0.3053) / 0.3761
    state["features.0.weight"] = -state["features.0.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match="inverted images"):
        tiny(f"teacher.weights={tmp_path / 'w.safetensors'}", "teacher.check=true")


def test_teacher_with_permuted_classes(tiny: Tiny, teacher_file: Path, tmp_path: Path) -> None:
    state = bare(teacher_file)
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    state["head.weight"], state["head.bias"] = state["head.weight"][order], state["head.bias"][order]
    save_file(state, tmp_path / "w.safetensors")
    settings = (f"teacher.weights={tmp_path / 'w.safetensors'}", "teacher.check=true")
    with pytest.raises(TeacherError, match="another class order") as refusal:
        tiny(*settings)
    hint = re.search(r"teacher\.class_order=\[[\d,]+\]", str(refusal.value))[0]
    assert (
        tiny(*settings, hint)["metrics"]["teacher/accuracy"]
        == tiny(f"teacher.weights={teacher_file}")["metrics"]["teacher/accuracy"]
    )


@pytest.mark.parametrize("at", [0, 1, 4])
def test_nan_names_the_term_and_the_round(at: int, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    monkeypatch.setattr(
        "kd_lightning.methods.dafl.activation", lambda f: f.mean() * (float("nan") if next(calls) == at else 1.0)
    )
    with pytest.raises(TrainingError, match=rf"'act' of Dafl was not finite in round {at}\. Lower"):
        tiny("+method.log_every=3", "source.rounds=6")
    assert json.loads((tmp_path / "run0/result.json").read_text())["status"] == "failed"


def test_collapsed_generator_is_warned_about_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, z: forward(self, z) * 0 + 0.5)
    with pytest.warns(
        UserWarning, match=r"collapsed \(round \d+\): entropy .* pixel spread 0\.000.*optimizer_g\.lr"
    ) as seen:
        tiny("source.rounds=241", "trainer.max_epochs=1")
    said = [str(w.message) for w in seen if "collapsed" in str(w.message)]
    assert len(said) == 1
    assert int(re.search(r"round (\d+)", said[0])[1]) <= 200


def test_a_healthy_generator_is_not_warned_about(tiny: Tiny, teacher_file: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapsed.*")
        tiny("source.rounds=241", "trainer.max_epochs=1", f"teacher.weights={teacher_file}", "method.generator.ngf=16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two classes, their names in the folders."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for value, name in ((60, "dark"), (200, "light")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(8):
                pixels = torch.randint(value - 30, value + 30, (8, 8), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / "images" / part / name / f"{i}.png")
    return tmp_path / "images"


FOLDER = ("data=image_folder", "data.size=8", "data.channels=1", "data.val=0", "data.recipe.augment=[]",
          "data.recipe.batch_size=4", "method=kd")  # fmt: skip


def test_class_names_reach_the_student(tiny: Tiny, folder: Path) -> None:
    result = tiny(*FOLDER, f"data.root={folder}")
    assert json.loads((result.folder / "student.json").read_text())["classes"] == ["dark", "light"]


def test_empty_class(tiny: Tiny, folder: Path) -> None:
    for file in (folder / "train/dark").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"train/dark holds no image .*add some, or remove the folder"):
        tiny(*FOLDER, f"data.root={folder}")


def test_undecodable_image(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    (folder / "train/light/3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot decode .*train/light/3\.png.*data\.skip_bad=true"):
        tiny(*FOLDER, f"data.root={folder}")
    assert json.loads((tmp_path / "run0/result.json").read_text())["status"] == "failed"
    assert tiny(*FOLDER, f"data.root={folder}", "data.skip_bad=true")["dataset"]["skipped"] == 1


@pytest.mark.slow
def test_full_disk_is_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "kd_lightning.cli",
        "method=dafl",
        *TINY,
        *DAFL,
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    run = subprocess.run(
        command,
        env=os.environ | {"KD_ARTIFACTS": str(tmp_path / "store")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert re.search(
        r"^error: cannot write .*(last\.ckpt|safetensors|unfinished).*artifacts\.root=DIR", run.stderr, re.M
    )
    assert "Traceback" not in run.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "store").glob("*/artifact.json"))
