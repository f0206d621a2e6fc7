"""What README and docs say to type composes as written, and their examples run."""

from __future__ import annotations

import re
import shlex
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

from kd_lightning.cli.refusals import plugin_faults
from kd_lightning.config import resolvers
from kd_lightning.config.check import check, faults
from kd_lightning.config.overrides import jobs, read, swept
from kd_lightning.core.log_filters import quiet
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.normalized import Normalized
from kd_lightning.results.student_files import load_student, save_single
from kd_lightning.run.run import run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATOR = """
import torch
from torch import nn


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, z, y):
        return torch.rand(len(z), 1, 8, 8) + 0 * self.weight
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path, program: str) -> list[list[str]]:
    """The words behind ``program`` in each line of shell that begins with it, variables before it left out."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    typed = [shlex.split(line, comments=True) for line in lines]
    typed = [words[next((i for i, word in enumerate(words) if "=" not in word), 0) :] for words in typed if words]
    typed = [words[words.index(program) :] if words[:1] == ["uv"] and program in words else words for words in typed]
    return [words[1:] for words in typed if words[:1] == [program]]


ALL = [(page, words) for page in PAGES for words in commands(page, "kd-lightning")]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who has what the pages speak of."""
    resolvers.register()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "my_images" / part / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "my_images" / part / name / "1.png")
    for i in range(30):
        for name in (f"my_photos/deep/{i}.png", f"my_faces/{3 * i}_{i}.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (8 * i, 0, 0)).save(tmp_path / name)
    tags = ["cat;dog", "dog;indoor", ""] * 10
    for name, labels in {"labels": ["cat", "dog"] * 15, "ages": [3 * i for i in range(30)], "tags": tags}.items():
        rows = [f"my_photos/deep/{i}.png,{label}" for i, label in enumerate(labels)]
        (tmp_path / f"my_{name}.csv").write_text("\n".join(["path,label", *rows]))
    rows = [f"my_photos/deep/{i}.png,{i % 2},{i % 3 // 2},{i // 15}" for i in range(30)]
    (tmp_path / "my_flags.csv").write_text("\n".join(["path,cat,dog,indoor", *rows]))
    for name in ("0", "180"):
        (tmp_path / "lines" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (192, 48)).save(tmp_path / "lines" / "train" / name / "1.png")
    (tmp_path / "cls.onnx").touch()
    (tmp_path / "my_scenes").mkdir()
    (tmp_path / "my_scenes" / "classes.txt").write_text("wall\ndoor\n")
    (tmp_path / "my_gan.py").write_text(GENERATOR)
    save_file({"weight": torch.zeros(1)}, tmp_path / "generator.safetensors")
    net = Normalized(LeNet5(num_classes=10, in_channels=1), mean=[0.1307], std=[0.3081])
    save_file(net.state_dict(), tmp_path / "lenet5.safetensors")
    (tmp_path / "runs" / "sweeps" / "DIR").mkdir(parents=True)
    python = [block for page in PAGES for block in blocks(page, "python")]
    (tmp_path / "my_api.py").write_text(next(block for block in python if "def ask(images)" in block))
    (tmp_path / "my_method.py").write_text(next(block for block in python if "class Mine(Distiller)" in block))
    (tmp_path / "my_adapter.py").write_text(next(block for block in python if "class Widened" in block))
    written = [block for page in PAGES for block in blocks(page, "yaml")]
    marks = {"network/mine": "mobilenet_v3", "method/mine": "my_method.Mine", "method/my_hint": "my_adapter.Widened"}
    marks |= {"metrics/mine": "torchmetrics"}
    for name, mark in marks.items():
        file = tmp_path / "my_conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(next(block for block in written if mark in block))
    return tmp_path


def composed_jobs(words: list[str]) -> list[tuple[list[str], list[str]]]:
    """Overrides and folders of configuration of every job that a command line starts."""
    folders = [words[i + 1] for i, word in enumerate(words) if word == "--config-dir"]
    overrides = [word for word in words if not word.startswith("-") and word not in folders]
    varied = swept(overrides, folders) or []
    return [(job, folders) for job in jobs([*varied, *overrides]) or [overrides]]


def typed() -> list[Any]:
    """Every command; those of README by default, those of other pages with ``-m slow``."""
    return [
        pytest.param(
            *(page, words),
            id=f"{page.name}: {shlex.join(words)}",
            marks=[] if page.name == "README.md" else [pytest.mark.slow],
        )
        for page, words in ALL
    ]


@pytest.mark.parametrize(("page", "words"), typed())
def test_every_command_composes_as_written(page: Path, words: list[str], reader: Path) -> None:
    if words[:1] in (["--help"], ["explain"], ["-sc"]):
        return
    if "sweep=optuna" in words and not optuna_is_there():
        assert any("sweep=optuna: not installed" in fault for fault in plugin_faults(words))
        words = [word for word in words if word != "sweep=optuna" and "hydra.sweeper." not in word]
    found = [composed for job, folders in composed_jobs(words)[:2] for composed in [read(job, folders)]]
    assert found
    for composed in found:
        assert not composed.problems, composed.problems
        wrong = [fault for fault in faults(composed.cfg) if not fault.startswith("trainer.devices")]  # no such machine
        assert not wrong, wrong


def optuna_is_there() -> bool:
    with suppress(ModuleNotFoundError):
        return find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
    return False


def test_what_an_agent_starts_composes(reader: Path) -> None:
    (page,) = (page for page in PAGES if page.name == "wandb.md")
    sweep = yaml.safe_load(blocks(page, "yaml")[0])
    assert sweep["metric"]["name"] == "test/accuracy"
    chosen = {key: some.get("values", [some.get("min")])[0] for key, some in sweep["parameters"].items()}
    program, *words = sweep["command"]
    assert (program, words.pop()) == ("kd-lightning", "${args_no_hyphens}")
    composed = read([*words, *(f"{key}={value}" for key, value in chosen.items())])
    assert not composed.problems
    assert not faults(composed.cfg)
    assert composed.cfg.method.optimizer.lr == 0.0001


@pytest.mark.slow
def test_distill_runs_as_written(reader: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "your_method.md"
    code = next(block for block in blocks(page, "python") if "kd_lightning.distill(" in block)
    exec(compile(code, "page", "exec"), {"__name__": "page"})
    assert "torch.Size([5, 10])" in capsys.readouterr().out


def test_a_student_is_used_as_written(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for page in PAGES for block in blocks(page, "python") if "import load_student" in block)
    monkeypatch.chdir(tmp_path)
    save_single(load_student(finished), tmp_path / "student.safetensors")
    exec(compile(code, "page", "exec"), {"__name__": "page"})


@pytest.mark.slow
@pytest.mark.parametrize("said", ["method.optimizer.lr=0.01", "metrics=mine", "EarlyStopping", "artifacts.scope"])
def test_what_pages_say_of_settings_runs_as_written(said: str, reader: Path, store: Path) -> None:
    words = next(words for _, words in ALL if any(said in word for word in words))
    ((job, folders),) = composed_jobs(words)
    cfg = read([*TINY, *job, "trainer.max_epochs=1", "data.recipe.epochs=1"], folders)
    assert not cfg.problems
    quiet()
    result = run(check(cfg.cfg, {}), reader / "run")
    assert result["status"] == "ok"
    assert ("f1" in result["metrics"]) == (said == "metrics=mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [
        "my_labels.csv",
        "my_ages.csv",
        "my_tags.csv",
        "my_flags.csv",
        "my_faces",
        "my_photos",
        "data.cache=disk",
        "data.resize=pad",
        "data.size=[24,96]",
    ],
)
def test_what_pages_say_of_data_runs_as_written(said: str, reader: Path, store: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(9):
                Image.new("RGB", (40, 20), (i, 0, 0)).save(reader / "my_images" / part / name / f"{i}.png")
    words = next(words for page, words in ALL if page.name == "your_data.md" and any(said in word for word in words))
    ((job, folders),) = composed_jobs(words)
    cfg = read([*TINY, *job, "trainer.max_epochs=1", "data.recipe.epochs=1", "data.recipe.batch_size=8"], folders)
    assert not cfg.problems
    quiet()
    result = run(check(cfg.cfg, {}), reader / "run")
    assert result["status"] == "ok"
    assert load_student(reader / "run").card.get("resize", "crop") == ("pad" if "pad" in said else "crop")


@pytest.mark.slow
@pytest.mark.parametrize("said", ["train=images", 'labels="several"'])
def test_images_in_memory_are_used_as_written(
    said: str, reader: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(block for page in PAGES for block in blocks(page, "python") if said in block)
    exec(compile(code, "page", "exec"), {"__name__": "page"})
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["source=queried", "teacher.white=true"])
def test_a_deployed_model_is_distilled_as_written(way: str, tmp_path: Path, store: Path, monkeypatch: Any) -> None:
    if find_spec("rapidocr") is None or (way == "teacher.white=true" and find_spec("onnx2torch") is None):
        pytest.skip("needs the wheel with the model, and onnx2torch")
    resolvers.register()
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "deployed_model.md"
    package = next(iter(find_spec("rapidocr").submodule_search_locations))  # type: ignore[union-attr, arg-type]
    shutil.copyfile(Path(package) / "models" / "ch_ppocr_mobile_v2.0_cls_mobile.onnx", "cls.onnx")
    code = blocks(page, "python")[0].replace("12_000", "60").replace("1500", "40")
    exec(compile(code, "page", "exec"), {"__name__": "page"})
    words = next(words for words in commands(page, "kd-lightning") if way in words)
    short = ["data.recipe.epochs=1", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    cfg = read([*words, *short, *(["source.rounds=1"] if "method=dfq" in words else [])])
    assert not cfg.problems
    quiet()
    metrics = run(check(cfg.cfg, {}), tmp_path / "run")["metrics"]
    assert metrics["teacher/accuracy"] > 0.8, "the settings are what the file takes"
    assert 0 <= metrics["test/agreement"] <= 1


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
