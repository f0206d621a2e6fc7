"""A composition: built once from what was checked, frozen, and the same whoever builds it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, composition
from omegaconf import OmegaConf

import kd_lightning
from kd_lightning.config.check import check, faults
from kd_lightning.config.composition import Training
from kd_lightning.config.node import Node, freeze
from kd_lightning.run.run import settle

PACKAGE = Path(kd_lightning.__file__).parent


def node(**settings: Any) -> Node:
    made = Node.of({"_target_": "builtins.dict", **settings})
    assert made is not None
    return made


def settings_of(training: Training) -> dict[str, Any]:
    return {word.name: getattr(training, word.name) for word in fields(training)}


def test_nothing_in_it_can_be_assigned() -> None:
    whole = composition("method=rdskd", "controls=digits")
    for part, name in [(whole, "seed"), (whole.data, "mean"), (whole.method, "target"), (whole.teacher, "access")]:
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, None)
    for mapping in (whole.stages, whole.controls, whole.method.settings, whole.method["optimizer"]):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["lr"] = 1.0  # type: ignore[index]
    assert isinstance(whole.data.mean, tuple)
    assert isinstance(node(betas=[0.5, 0.9]).settings["betas"], tuple)


@pytest.mark.parametrize("overrides", [("method=dafl",), ("method=fs_bbt", "teacher.access=probs"), ("method=skdcgn",)])
def test_what_was_checked_is_what_is_built(overrides: tuple[str, ...]) -> None:
    cfg = composed(*overrides)
    whole = check(cfg)
    for word in ("source", "student", "method", "trainer"):
        assert getattr(whole, word).plain() == OmegaConf.to_container(cfg[word], resolve=True)
    assert list(whole.stages) == [stage.name for stage in cfg.stages]
    before = whole.digest()
    cfg.seed, cfg.trainer.max_epochs = 77, 999
    assert whole.digest() == before, "what is done to the configuration later changes nothing"


def test_text_is_never_interpreted_when_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_SECRET", "told")
    assert node(name="${oc.env:KD_SECRET}").build() == {"name": "${oc.env:KD_SECRET}"}


def test_a_node_is_built_from_the_inside_in_types_of_pythons_own() -> None:
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "betas": [0.5, 0.9]}
    whole = node(optimizer=adam, net={"_target_": "torch.nn.Linear", "_args_": [2, 3]}, terms={"a": [1, {"b": 2}]})
    first, second = whole.build(given="this"), whole.build()
    assert first["given"] == "this"
    assert isinstance(first["optimizer"], partial)
    assert first["optimizer"].keywords == {"betas": [0.5, 0.9]}
    assert isinstance(first["net"], torch.nn.Linear)
    assert first["terms"] == {"a": [1, {"b": 2}]}
    first["terms"]["a"].append("mine")
    assert second["terms"] == {"a": [1, {"b": 2}]}, "each is a fresh one"
    assert whole.plain()["terms"] == {"a": [1, {"b": 2}]}


def test_requirements_follow_the_settings_it_is_built_with() -> None:
    kd = composition("method=kd").method
    assert {"teacher", "source.images", "source.labels"} <= kd.requirements()
    assert "source.labels" not in kd.replace(label=0.0).requirements()
    assert "teacher" not in kd.replace(terms={}).requirements()
    assert node().requirements() == frozenset()


def test_deriving_keeps_the_rest() -> None:
    whole = composition("method=kd", "controls=digits")
    other = whole.derive(seed=7, method=whole.method.replace(label=0.25))
    own, others = settings_of(whole), settings_of(other)
    assert {name for name in own if own[name] != others[name]} == {"seed", "method"}
    assert other.method.without("label") == whole.method.without("label")
    assert (whole.seed, whole.method["label"]) == (0, 0.1)


def test_a_stage_is_a_training_of_its_own() -> None:
    whole = composition("method=rdskd", "rdskd.trainer.max_epochs=3", "trainer.max_epochs=5", "controls=digits")
    generator = whole.stages["generator"]
    assert generator.method.target.endswith("RdskdGenerator")
    assert (generator.trainer["max_epochs"], whole.trainer["max_epochs"]) == (3, 5)
    assert generator.student == whole.student
    assert (generator.asks, whole.controls["scratch"].asks) == (True, False)
    assert whole.teacher is not None
    training = whole.teacher.training
    assert training is not None
    assert (training.student, training.seed) == (whole.teacher.net, whole.teacher.seed)
    # what it refers to is of its own training
    assert training.method["scheduler"]["T_max"] == training.trainer["max_epochs"] == 80


def test_files_of_a_stage_stay_open_until_it_has_ended(tmp_path: Path) -> None:
    whole = composition("method=active_mixup", "teacher.access=probs")
    after = whole.after("second", tmp_path)
    files = ["stage:first/student.safetensors", str(tmp_path / "student.safetensors")]
    assert list(after.stages["third"].source["expand"]["students"]) == files
    assert list(after.source["expand"]["students"]) == [*files, "stage:third/student.safetensors"]
    assert "stage:second/" in str(whole.source.plain()), "the one before is as it was"


NOKD = ("method=kd", "stages=nokd", "trainer.max_epochs=3", "data.recipe.epochs=4")


def test_a_control_is_stretched_with_its_schedule() -> None:
    whole = composition(*NOKD)
    control = whole.controls["nokd_equal"]
    assert control.trainer["max_epochs"] == control.method["scheduler"]["T_max"] == 3
    assert control.source["batch_size"] == 64
    longer = control.stretched(updates=110, images=640, world=1)
    assert longer.trainer["max_epochs"] == longer.method["scheduler"]["T_max"] == 11
    assert control.stretched(updates=110, images=640, world=2).trainer["max_epochs"] == 22
    assert longer.derive(trainer=control.trainer, method=control.method) == control
    assert control.stretched(updates=110, images=None, world=1) == control
    assert whole.controls["nokd"].stretched(updates=110, images=640, world=1) == whole.controls["nokd"]
    noise = composition("method=kd", "controls=digits", "trainer.max_epochs=5").controls["noise"]
    assert noise.stretched(updates=110, images=None, world=1).source["rounds"] == 22


def test_noise_is_as_large_as_the_scenes_that_a_method_makes() -> None:
    made = composition("problem=dense_digits", "method=dfad", "controls=baselines", "~controls.scratch")
    assert list(made.controls["noise"].source["size"]) == [16, 32]
    assert composition("method=kd", "controls=digits").controls["noise"].source["size"] is None


@pytest.mark.parametrize(("epochs", "at"), [(300, [100, 200]), (20, [6, 13])])
def test_dense_dfad_lowers_its_rates_twice_whatever_its_length(epochs: int, at: list[int]) -> None:
    given = ("data=camvid", "teacher=deeplab_resnet50", "student=deeplab_mobilenet_v2", "method=dfad_dense")
    made = composition(*given, "scale=paper", f"trainer.max_epochs={epochs}").method
    assert [list(made[key]["milestones"]) for key in ("scheduler", "scheduler_g")] == [at, at]


@pytest.mark.parametrize("size", ["5", "'${kd.times:${trainer.max_epochs},0.5}'"])
def test_a_schedule_that_does_not_follow_keeps_its_shape(size: str) -> None:
    step = "{_target_:torch.optim.lr_scheduler.StepLR,_partial_:true,step_size:" + size + "}"
    control = composition(*NOKD, f"controls.nokd_equal.method.scheduler={step}").controls["nokd_equal"]
    longer = control.stretched(updates=120, images=640, world=1)
    schedule = longer.method["scheduler"]
    assert schedule["_target_"].endswith("Stretched")
    assert (schedule["schedule"], schedule["by"]) == (control.method["scheduler"], 4.0)


def test_a_control_that_cannot_be_stretched_is_a_fault() -> None:
    (line,) = faults(composed(*NOKD, "controls.nokd_equal.method.label='${kd.times:${trainer.max_epochs},2.0}'"))
    assert line.startswith("controls.nokd_equal.method.label: follows trainer.max_epochs without being equal to it")


def test_two_stages_of_one_name_are_a_fault() -> None:
    cfg = composed("method=rdskd")
    cfg.stages = ["${rdskd}", "${rdskd}"]
    lines = faults(cfg)
    assert lines == ["stages[1].name: there is another stage called generator; give it a name of its own"]
    assert any(line.startswith("stages[0].name: required") for line in faults(composed("method=rdskd", "~rdskd.name")))


def test_a_stages_own_fault_is_said_where_it_stands() -> None:
    whole = composed("method=rdskd", "+rdskd.data.mean='${data.size}'")
    assert faults(whole) == [], "nothing is wrong with the student's own"


def test_what_the_machine_knows_is_put_into_every_training() -> None:
    whole = composition("method=rdskd", "trainer.precision=auto", "trainer.accelerator=cpu", "controls=digits")
    settled = settle(whole)
    assert settled.teacher is not None
    trainings = [settled, settled.teacher.training, *settled.stages.values(), *settled.controls.values()]
    precisions = {training.trainer["precision"] for training in trainings if training}
    assert len(trainings) == 5
    assert len(precisions) == 1
    assert precisions <= {"bf16-mixed", "32-true"}
    assert whole.trainer["precision"] == "auto"


def test_a_digest_knows_no_order() -> None:
    there = {"_target_": "a.B", "x": 1, "inner": {"_target_": "c.D", "y": [1, 2], "z": None}}
    back = {"inner": {"z": None, "y": [1, 2], "_target_": "c.D"}, "x": 1, "_target_": "a.B"}
    first, second = Node.of(there), Node.of(back)
    assert first is not None
    assert second is not None
    assert first.digest() == second.digest()
    assert first.digest() != first.replace(x=2).digest()
    whole = composition("method=kd", "controls=digits")
    turned = whole.derive(controls=freeze(dict(reversed(whole.controls.items()))))
    assert whole.digest() == turned.digest()
    assert whole.digest() != whole.derive(controls=freeze({})).digest()


@pytest.mark.slow
def test_a_digest_is_the_same_in_another_process() -> None:
    program = "from conftest import composition; print(composition('method=rdskd', 'controls=digits').digest())"
    command = [sys.executable, "-c", program]
    run = partial(subprocess.run, command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    said = run(env=os.environ | {"PYTHONHASHSEED": "7"}).stdout.strip()
    assert said == composition("method=rdskd", "controls=digits").digest()


def test_omegaconf_stays_where_configurations_are_read() -> None:
    words = re.compile(r"\b(DictConfig|OmegaConf|to_container|open_dict)\b")
    found = {file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py") if words.search(file.read_text())}
    assert {file for file in found if file.parts[0] not in ("config", "cli", "plugins")} == set()
    assert Path("config/derive.py") in found
