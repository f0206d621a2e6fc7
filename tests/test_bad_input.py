"""Whatever goes wrong in a run ends in one clear message with what to do, or in a warning."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DAFL, PATIENCE, TINY, Outcome, composed
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_lightning.config.check import faults
from kd_lightning.core.file_format import FORMAT_VERSION
from kd_lightning.data.datasets import digits
from kd_lightning.engine.checkpoint_reader import read_checkpoint, resumable
from kd_lightning.engine.restart import next_seed
from kd_lightning.errors import DataError, TeacherError, TrainingError, UserError, VersionError
from kd_lightning.networks.generators.generators import ConvGenerator
from kd_lightning.results.run_loader import load_generator, open_run
from kd_lightning.results.student_files import load_student, save_single
from kd_lightning.store.artifacts import Store

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


def test_a_student_does_not_start_from_other_widths(tiny: Tiny, teacher_file: Path) -> None:
    with pytest.raises(
        TeacherError, match=r"(?s)does not fit SmallConvNet:.*shape \(32, 1, 3, 3\), the network has \(8"
    ):
        tiny("method=kd", f"init={teacher_file}", f"teacher.weights={teacher_file}")


GENERATED = (
    "method=kd",
    "method.label=0.0",
    "source=generated",
    "stages=none",
    "source.rounds=2",
    "source.latent=8",
    "source.generator.ngf=4",
)


def test_a_source_does_not_draw_from_another_generator(tiny: Tiny, teacher_file: Path, tmp_path: Path) -> None:
    settings = (*GENERATED, f"teacher.weights={teacher_file}")
    with pytest.raises(TeacherError, match=r"(?s)does not fit ConvGenerator:.*Choose the network it was saved from"):
        tiny(*settings, f"source.weights={teacher_file}")
    (line,) = faults(composed(*settings, f"source.weights={tmp_path / 'gone.safetensors'}"))
    assert line == f"source.weights: there is no file {tmp_path / 'gone.safetensors'}"
    (line,) = faults(composed(*settings, f"source.weights={teacher_file}", "stages=generator"))
    assert "the stage generator would be trained for nothing: add stages=none" in line
    (line,) = faults(composed("method=rdskd", "source.weights=stage:generatr/generator.safetensors"))
    assert "there is no stage generatr; did you mean" in line


def test_a_file_of_a_source_counts_by_what_is_in_it(tiny: Tiny, teacher_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "generator.safetensors"
    settings = (*GENERATED, f"teacher.weights={teacher_file}")

    def leave(seed: int, file: Path) -> None:
        torch.manual_seed(seed)
        made = ConvGenerator(latent=8, channels=1, size=8, ngf=4, mean=[0.3], std=[0.4])
        save_file({k: v.clone() for k, v in made.state_dict().items()}, file)

    leave(0, file)
    first = tiny(*settings, f"source.weights={file}")
    assert tiny(*settings, f"source.weights={file}")["stored"]
    leave(1, file)
    second = tiny(*settings, f"source.weights={file}")
    assert not second["stored"]
    weights = [load_file(run.folder / "student.safetensors") for run in (first, second)]
    assert not all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    leave(0, tmp_path / "elsewhere.safetensors")
    fits = len(list((tmp_path / "store").glob("fit-*/fit.json")))
    tiny(*settings, f"source.weights={tmp_path / 'elsewhere.safetensors'}")
    assert len(list((tmp_path / "store").glob("fit-*/fit.json"))) == fits, "the same content is the same fit"


def other_version(path: Path, version: int) -> None:
    content = json.loads(path.read_text())
    assert content["format_version"] == FORMAT_VERSION
    path.write_text(json.dumps(content | {"format_version": version}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "remedy"), [(2, "written by a newer one, install that"), (0, "kd-artifacts rm run-")]
)
def test_an_artefact_of_another_format_is_refused_and_left(version: int, remedy: str, tiny: Tiny, store: Path) -> None:
    tiny("method=kd")
    (file,) = store.glob("run-*/artifact.json")
    other_version(file, version)
    before = file.read_text()
    with pytest.raises(
        VersionError, match=rf"format_version {version}, this kd_lightning reads 1: .*{remedy}"
    ) as error:
        tiny("method=kd")
    assert "\n" not in str(error.value)
    assert file.read_text() == before


def test_a_half_written_artefact_is_set_aside_and_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Store(tmp_path).obtain("thing", {}, lambda f: None)
    (folder / "artifact.json").write_text('{"format_version": 1, "ki')
    assert Store(tmp_path).obtain("thing", {}, lambda f: None) == folder
    assert json.loads((folder / "artifact.json").read_text())["kind"] == "thing"
    assert (tmp_path / f"{folder.name}.damaged" / "artifact.json").read_text() == '{"format_version": 1, "ki'
    assert "artifact.json cannot be read" in capsys.readouterr().err


def test_everything_that_is_written_names_its_format(finished: Path, tmp_path: Path) -> None:
    for name in ("result.json", "student.json"):
        assert json.loads((finished / name).read_text())["format_version"] == FORMAT_VERSION
    assert read_checkpoint(finished / "last.ckpt")["format_version"] == FORMAT_VERSION
    save_single(load_student(finished), tmp_path / "one.safetensors")
    root = Path(open_run(finished).cfg["artifacts"]["root"])
    files = [finished / "student.safetensors", tmp_path / "one.safetensors", *root.glob("fit-*/*.safetensors")]
    assert len(files) == 5  # of the teacher, the student and its generator, too
    for file in files:
        with safe_open(file, framework="pt") as content:
            assert content.metadata()["format_version"] == str(FORMAT_VERSION)
    artefacts = list(root.glob("*/artifact.json"))
    assert {file.parent.name.partition("-")[0] for file in artefacts} == {"fit", "run"}
    assert all(json.loads(file.read_text())["format_version"] == FORMAT_VERSION for file in artefacts)


@pytest.mark.parametrize("version", [0, 2])
def test_files_of_another_format_are_refused_in_one_line(version: int, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def refused(read: Callable[[], object]) -> None:
        with pytest.raises(VersionError, match=rf"format_version {version}, this kd_lightning reads 1: ") as error:
            read()
        assert "\n" not in str(error.value)

    shutil.copytree(finished, run)
    other_version(run / "student.json", version)
    refused(lambda: load_student(run))
    shutil.copy(finished / "student.json", run)
    other_version(run / "result.json", version)
    refused(lambda: open_run(run))
    shutil.copy(finished / "result.json", run)
    torch.save(torch.load(run / "last.ckpt", weights_only=True) | {"format_version": version}, tmp_path / "ckpt")
    shutil.copy(tmp_path / "ckpt", run / "last.ckpt")
    refused(lambda: load_generator(open_run(run)))
    state = load_file(run / "student.safetensors")
    save_file(state, run / "student.safetensors", metadata={"format_version": str(version)})
    refused(lambda: load_student(run))


@pytest.mark.slow
def test_an_unfinished_fit_goes_on_from_its_own_checkpoint_alone(
    tiny: Tiny, teacher_file: Path, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("method=dafl", f"teacher.weights={teacher_file}")
    done = tiny(*settings)
    (fit,) = (f.parent for f in store.glob("fit-*/generator.safetensors"))
    (kept,) = store.glob("run-*/artifact.json")
    for case, expected in {
        "method": r"of another fit \(Distill, this is Dafl\): generator\.\S+ is in the method alone, and \d+ more",
        "widths": r"of another fit \(Dafl, this is Dafl\): \S+ is \(\d.*\) in it, \(.*\) in the method",
        "damage": r"last\.ckpt cannot be read .*Remove .*last\.ckpt to begin this fit anew",
    }.items():
        shutil.rmtree(kept.parent, ignore_errors=True)
        if fit.exists():
            fit.rename(f"{fit}.unfinished")
            (Path(f"{fit}.unfinished") / "artifact.json").unlink()
        checkpoint = Path(f"{fit}.unfinished") / "last.ckpt"
        other = tiny("method=kd", settings[1]) if case == "method" else tiny(*settings, "method.generator.ngf=5")
        shutil.copy(other.folder / "last.ckpt", checkpoint)
        if case == "damage":
            os.truncate(checkpoint, 5000)
        before = checkpoint.read_bytes()
        with pytest.raises(UserError, match=expected) as error:
            tiny(*settings)
        assert "\n" not in str(error.value)
        assert checkpoint.read_bytes() == before
    checkpoint.unlink()
    assert tiny(*settings)["metrics"] == done["metrics"]


def test_a_checkpoint_can_run_no_code(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'touched'}",)

    torch.save({"state_dict": {}, "evil": Touch()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        resumable(tmp_path / "last.ckpt", nn.Linear(1, 1))
    assert not (tmp_path / "touched").exists()


def test_nothing_is_loaded_that_could_run_code() -> None:
    code = {path: path.read_text() for path in Path(__file__).parents[1].joinpath("kd_lightning").rglob("*.py")}
    calls = [(path.name, call) for path, text in code.items() for call in re.findall(r"torch\.load\([^)]*\)", text)]
    assert calls
    assert all("weights_only=True" in call for _, call in calls), calls
    fits = [line for text in code.values() for line in re.findall(r"\.(?:fit|test|validate)\([^\n]*ckpt_path.*", text)]
    assert fits
    assert all("weights_only=True" in line for line in fits), fits
    assert not [
        path
        for path, text in code.items()
        if re.search(r"pickle\.loads?\(|load_from_checkpoint|allow_pickle=True", text)
    ]


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
        "kd_lightning.methods.data_free.dafl.activation",
        lambda f: f.mean() * (float("nan") if next(calls) == at else 1.0),
    )
    with pytest.raises(TrainingError, match=rf"'act' of Dafl was not finite in round {at}\. Lower"):
        tiny("+method.log_every=3", "source.rounds=6")
    assert json.loads((tmp_path / "run0/result.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_collapsed_generator_is_warned_about_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ConvGenerator.forward
    monkeypatch.setattr(ConvGenerator, "forward", lambda self, z: forward(self, z) * 0 + 0.5)
    with pytest.warns(
        UserWarning, match=r"collapsed \(round \d+\): entropy .* pixel spread 0\.000.*optimizer_g\.lr"
    ) as seen:
        tiny("source.rounds=241", "trainer.max_epochs=1")
    said = [str(w.message) for w in seen if "collapsed" in str(w.message)]
    assert len(said) == 1
    assert int(re.search(r"round (\d+)", said[0])[1]) <= 200


def collapsing(monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    """Generators that make grey only, until one that was made later than the first ``attempts`` which are trained."""
    made: list[ConvGenerator] = []  # the objects: a number of one that is gone is given again
    forward = ConvGenerator.forward

    def grey(self: ConvGenerator, z: torch.Tensor) -> torch.Tensor:
        if not self.training:  # the pass before the fit
            return forward(self, z)
        if not any(self is each for each in made):
            made.append(self)
        grey = any(self is each for each in made[:attempts])
        return forward(self, z) * 0 + 0.5 if grey else forward(self, z)

    monkeypatch.setattr(ConvGenerator, "forward", grey)


RESTART = ("source.rounds=241", "trainer.max_epochs=1", "method.generator.ngf=16")


@pytest.mark.slow
def test_a_collapsed_generator_begins_again_with_another_seed(
    tiny: Tiny, teacher_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collapsing(monkeypatch, attempts=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapsed.*")
        result = tiny(*RESTART, "method.on_collapse=restart", f"teacher.weights={teacher_file}")
    (attempt,) = result["restarts"]["student"]
    assert attempt["seed"] == 0
    assert 100 < attempt["round"] <= 200
    assert "Beginning again with another seed, 1 of 3" in capsys.readouterr().err
    assert result["cost"]["images_synthesised"] == 241 * 16, "of the attempt that was kept"
    monkeypatch.undo()
    clean = tiny(*RESTART, f"seed={next_seed(0, 1)}", f"teacher.weights={teacher_file}")
    kept, afresh = (load_file(r.folder / "student.safetensors") for r in (result, clean))
    assert all(torch.equal(kept[k], afresh[k]) for k in kept), "an attempt is a fit like any other"


@pytest.mark.slow
def test_a_generator_that_always_collapses_ends_the_run(
    tiny: Tiny, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapsing(monkeypatch, attempts=99)
    with pytest.raises(TrainingError, match=r"collapsed .* each of the seeds 0, \d+, \d+, \d+\. Lower"):
        tiny(*RESTART, "method.on_collapse=restart", f"teacher.weights={teacher_file}")


@pytest.mark.slow
def test_a_healthy_generator_is_not_warned_about(
    tiny: Tiny, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that draws real digits, whatever its training comes to."""
    real = digits.load().train
    assert real is not None

    def drawing(self: ConvGenerator, z: torch.Tensor) -> torch.Tensor:
        return real.images[: len(z)].float() / 255 + 0 * forward(self, z)

    forward = ConvGenerator.forward
    monkeypatch.setattr(ConvGenerator, "forward", drawing)
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
        "kd_lightning.cli.main",
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
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert re.search(
        r"^error: cannot write .*(last\.ckpt|safetensors|unfinished).*artifacts\.root=DIR", run.stderr, re.M
    )
    assert "Traceback" not in run.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "store").glob("*/artifact.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "trains"),
    [
        (("method=dafl",), "student"),
        (("method=rdskd",), "generator"),
        (("method=cgan_kd", "data=mnist", "scale=small"), "gan"),
        (("method=cgan_kd_regression", "data=rotated_digits", "scale=small"), "gan"),
        (("experiment=skdcgn/double_colored_small",), "cgn"),
    ],
)
def test_restarting_is_one_setting_wherever_the_generator_is_trained(overrides: tuple[str, ...], trains: str) -> None:
    for chosen in ("warn", "restart"):
        cfg = composed(*overrides, f"method.on_collapse={chosen}")
        fits = {"student": cfg, **{stage.name: stage for stage in cfg.stages}}
        assert fits[trains].method.on_collapse == chosen


def test_a_fit_whose_generator_may_only_warn_is_kept_as_if_nothing_were_said(tiny: Tiny, store: Path) -> None:
    tiny()
    fits = sorted(store.glob("fit-*"))
    tiny("~method.on_collapse")
    assert sorted(store.glob("fit-*")) == fits
