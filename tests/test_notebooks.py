"""Every notebook runs on a run of any size, and lies in the repository without what it once showed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
FIGURES = {"inspect_checkpoint": 5, "compare_sweep": 3, "generated_images": 5}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def execute(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own backend puts figures into the notebook
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=resources).execute()


def figures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") or output.get("data", {}).get("text/markdown", "") for output in outputs)


def test_all_are_known() -> None:
    assert {path.stem for path in NOTEBOOKS} == FIGURES.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        assert cell["metadata"] == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert len(cells) <= 12
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * (len(cells) // 2), "prose before each step"
    assert re.search(r'os\.environ\.get\("KD_\w+"\)', "".join(cells[1]["source"]))
    text = "".join(line for cell in cells for line in cell["source"])
    for word in (".fit(", "distill(", "pip install", '"/', "'/"):
        assert word not in text


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_on_a_tiny_run(path: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished, tmp_path / "runs" / "dafl_digits" / "seed0")
    monkeypatch.delenv("KD_RUN", raising=False)
    monkeypatch.delenv("KD_SWEEP", raising=False)
    if path.stem == "compare_sweep":
        broken = tmp_path / "sweep" / "1"
        broken.mkdir(parents=True)
        (broken / "result.json").write_text('{"format_version": 1, "status": "failed", "reason": "the loss is NaN"}')
        shutil.copytree(finished / ".hydra", broken / ".hydra")
        shutil.copytree(finished, tmp_path / "sweep" / "0")
        monkeypatch.setenv("KD_SWEEP", str(tmp_path / "sweep"))
    ran = execute(nbformat.read(path, 4), tmp_path, monkeypatch)
    assert figures(ran) == FIGURES[path.stem]
    if path.stem == "compare_sweep":
        assert "1: failed, the loss is NaN" in printed(ran)
        assert "| accuracy" in re.sub(" +", " ", printed(ran))
    else:
        assert "seed0: dafl" in printed(ran), "the newest run in runs/ is the default"


@pytest.mark.slow
def test_the_call_without_hydra_runs_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch, kd_lightning

teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
student = kd_lightning.distill(
    teacher, num_classes=10, image=(1, 8, 8), method="dafl", trainer__max_epochs=2, source__rounds=3,
    trainer__accelerator="cpu", method__batch_size=16, method__latent=8, method__generator__ngf=4,
)
print(tuple(student(torch.rand(5, 1, 8, 8)).shape), student.card["metrics"]["test/accuracy"])
"""
    monkeypatch.setenv("KD_ARTIFACTS", str(tmp_path / "store"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    said = printed(execute(notebook, tmp_path, monkeypatch))
    assert "(5, 10) None" in said
    assert "student: round 6/6" in said
