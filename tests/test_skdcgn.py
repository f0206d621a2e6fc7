"""SKDCGN's chain on scikit-learn's digits: six fits, their numbers beside each other, one picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, composition
from safetensors.torch import load_file

from kd_lightning.cli.summary import summary
from kd_lightning.core.log_filters import quiet
from kd_lightning.errors import ConfigError
from kd_lightning.networks.generators.cgn import CgnGenerator
from kd_lightning.planning.dry_run import KEPT
from kd_lightning.planning.plan import plan
from kd_lightning.teachers.generator import DrawingTeacher

DATA = (
    *("data=double_colored_mnist", "student=digits_cnn", "data.base=digits"),
    *("data.train=200", "data.val=30", "data.test=60", "data.recipe.batch_size=20"),
)
CGN = (
    *("cgn.trainer.max_epochs=1", "cgn.source.batch_size=40", "cgn.method.perc=[]"),
    *("cgn.method.generator.ngf=4", "cgn.method.discriminator.ndf=8"),
)
PAIRS = ("source.pairs=40", "source.batch_size=20", "trainer.max_epochs=1")
SHORT = [f"{im}.{what}" for im in ("shape", "fg", "bg") for what in PAIRS]
CHAIN = (
    *(*DATA, *CGN, *SHORT, "source.rounds=2"),
    *("controls.teacher_counterfactual.source.rounds=2", "digits.trainer.max_epochs=1", "metrics.mechanisms.images=40"),
)


@pytest.fixture
def chain(tiny: Callable[..., Any]) -> Any:
    return tiny("method=skdcgn", "teacher=digits_cnn", *CHAIN)


def released(file: Path) -> CgnGenerator:
    """A CGN's weights in the layout of its authors' file for MNIST, and the network that has them."""
    torch.manual_seed(3)
    net = CgnGenerator(ngf=4)
    torch.save({theirs: net.state_dict()[ours] for theirs, ours in net.published.items()}, file)
    return net


def test_a_released_cgn_takes_the_place_of_its_stage(tmp_path: Path) -> None:
    net = released(tmp_path / "ckp.pth")
    words = (f"cgn.weights={tmp_path / 'ckp.pth'}", "cgn.method.generator.flat=false")
    own = composition(*TINY, "method=skdcgn", *CHAIN, *words).stages["fg"].source
    teacher = DrawingTeacher(own.build().generator, own.settings["weights"])
    z, y = torch.randn(8, 32), torch.arange(8)
    assert torch.equal(teacher.sample("fg", z, y), net.eval().draw("fg", z, y))


def test_a_stage_of_a_file_has_nothing_but_its_generator(tmp_path: Path) -> None:
    released(tmp_path / "ckp.pth")
    file = f"cgn.weights={tmp_path / 'ckp.pth'}"
    made = composition(*TINY, "method=skdcgn", *CHAIN, file)
    assert list(made.stages) == ["shape", "fg", "bg", "digits"]
    assert made.stages["shape"].source.settings["weights"] == str(tmp_path / "ckp.pth")
    with pytest.raises(ConfigError, match=r"cgn\.weights: there is no file gone\.pth"):
        composition(*TINY, "method=skdcgn", *CHAIN, "cgn.weights=gone.pth")
    with pytest.raises(ConfigError, match=r"the stage cgn, of cgn\.weights, has only generator\.safetensors"):
        composition(*TINY, "method=skdcgn", *CHAIN, file, "shape.source.weights=stage:cgn/student.safetensors")


@pytest.mark.slow
def test_the_chain_leaves_every_number_and_a_picture(chain: Any) -> None:
    metrics = chain["metrics"]
    for name in ("biased", "unbiased", "teacher_counterfactual", "student_counterfactual", "test"):
        assert 0 <= metrics[f"{name}/accuracy"] <= 1, name
    assert metrics["student_counterfactual/accuracy"] == metrics["test/accuracy"]
    assert metrics["compression/parameters"] == 3 * 28_115
    for key in ("mask_iou", "teacher_mask_accuracy", "student_mask_accuracy", "FID-digits_cnn"):
        assert metrics[f"mechanisms/{key}"] is not None
    assert (chain.folder / "samples" / "mechanisms.png").is_file()
    left = {str(path.relative_to(chain.folder / "stages")) for path in chain.folder.glob("stages/*/*")}
    drawers = {f"{name}/generator.safetensors" for name in ("cgn", "shape", "fg", "bg")}
    assert left == drawers | {"digits/student.safetensors"}, "a generator's idle student is nothing to keep"
    assert list(chain["cost"]["seconds"])[:7] == ["teacher", "cgn", "shape", "fg", "bg", "digits", "student"]
    told = summary(chain)
    assert told.count("student_counterfactual") == 1
    assert "students of 84,345 parameters together" in told
    assert chain["models"].keys() == {"student"}
    assert chain["teacher"] == "none", "whatever an experiment names, this method has none"


def test_a_run_of_a_generator_alone_keeps_it_and_claims_no_accuracy(tiny: Callable[..., Any]) -> None:
    own = ("trainer.max_epochs=1", "method.generator.ngf=4", "method.discriminator.ndf=8", "source.batch_size=40")
    own = (*own, "method.perc=[]")
    result = tiny("method=cgn", *DATA, *own)
    assert result["metrics"]["test/accuracy"] is None
    assert result["objective"] is None
    assert not (result.folder / "student.safetensors").exists()
    assert "label_emb.weight" in load_file(result.folder / "generator.safetensors")
    assert json.loads((result.folder / "result.json").read_text())["models"] == {}


@pytest.mark.slow
def test_a_mechanisms_student_is_a_run_of_its_own(tiny: Callable[..., Any], store: Path) -> None:
    for im in ("shape", "bg"):
        result = tiny("method=skdcgn_im", f"im={im}", *DATA, *CGN, *PAIRS)
        assert "colorize.weight" in load_file(result.folder / "generator.safetensors")
    assert len(list(store.glob("fit-*/generator.safetensors"))) == 3, "one CGN for both"


@pytest.mark.slow
def test_a_plan_names_every_fit_and_every_pool_of_the_chain(tiny: Callable[..., Any], store: Path) -> None:
    def planned() -> dict[str, Any]:
        quiet()
        names = {"data": "digits", "method": "skdcgn"} | dict(o.split("=", 1) for o in CHAIN if "." not in o)
        made = plan(composition(*TINY, "method=skdcgn", *CHAIN, names=names), promised)
        assert not any("a guess" in note for note in made.notes), "every image that is drawn is taken"
        return {step.name: step for step in made.steps}

    promised = set[str]()
    steps = planned()
    pairs = [name for im in ("shape", "fg", "bg") for name in (f"{im}'s pool", im)]
    controls = ["biased", "unbiased", "teacher_counterfactual"]
    assert sorted(steps) == sorted(["cgn", *pairs, "digits", "student", *controls, "test", "result"])
    assert all(step.images == 0 for step in steps.values()), "a generator is no teacher that is asked"
    tiny("method=skdcgn", *CHAIN)
    assert {
        path.parent.name for path in store.glob("*/artifact.json") if path.parent.name[:3] in ("fit", "poo")
    } == promised
    promised.clear()
    assert [name for name, step in planned().items() if step.state != KEPT] == []
