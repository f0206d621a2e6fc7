"""A run of two fits: what the first leaves, the second reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, composed
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file

from kd_lightning.config.check import check
from kd_lightning.core.log_filters import quiet
from kd_lightning.errors import ConfigError
from kd_lightning.run.run import run
from kd_lightning.run.stages_and_controls import handed

TINY_RDSKD = (
    "method=rdskd",
    "rdskd.source.rounds=3",
    "rdskd.trainer.max_epochs=1",
    "rdskd.method.batch_size=16",
    "rdskd.method.latent=8",
    "rdskd.method.generator.ngf=4",
    "source.rounds=4",
    "source.batch_size=10",
)


def test_a_stage_is_checked_like_the_fit_it_prepares() -> None:
    with pytest.raises(ConfigError, match=r"stages\[0\]\.method: RdskdGenerator needs the teacher's gradients"):
        check(composed("method=rdskd", "teacher.access=probs"))


def test_who_says_so_is_handed_no_teacher() -> None:
    teacher: Any = SimpleNamespace(hand_out=lambda: "a teacher", key="its key")
    given = {"teacher": "a teacher", "teacher_key": "its key"}
    assert handed(teacher) == handed(teacher, asks=True) == given
    assert handed(teacher, asks=False) == handed(None) == {}


def test_the_student_learns_from_what_the_stage_left(tiny: Callable[..., Any], store: Path) -> None:
    first = tiny(*TINY_RDSKD)
    assert list(store.glob("fit-*/generator.safetensors"))
    assert first["cost"]["seconds"]["generator"] > 0
    asked, made = 3 * 16 + 2 * 4 * 10, 3 * 16 + 2 * 4 * 10  # three rounds, then two epochs of four batches
    assert first["cost"]["teacher_images"] == asked
    assert first["cost"]["images_synthesised"] == made
    # the generator is kept and shared, and each fit still counts its own questions
    second = tiny(*TINY_RDSKD, "method.terms.response.weight=0.5")
    assert len(list(store.glob("fit-*/generator.safetensors"))) == 1
    assert second["cost"]["teacher_images"] == asked


FACTORS = """
paraphraser:
  name: paraphraser
  init: null
  student: ${main.student}
  source: ${main.source}
  method:
    _target_: kd_lightning.methods.real_data.distill.Distill
    label: 0.0
    optimizer: ${main.method.optimizer}
    terms:
      factors:
        weight: 1.0
        student: null
        teacher: features.-1
        adapt: {_target_: kd_lightning.networks.adapters.Paraphraser, _partial_: true}
        loss: {_target_: torch.nn.functional.mse_loss, _partial_: true}
main: {student: "${student}"}
method:
  terms:
    response: null
    factors:
      weight: 10.0
      student: features.-1
      teacher: features.-1
      adapt: {_target_: kd_lightning.networks.adapters.Translator, _partial_: true}
      given: {paraphraser: stage:paraphraser/factors.safetensors}
      loss: {_target_: torch.nn.functional.l1_loss, _partial_: true}
stages: ["${paraphraser}"]
"""


def test_a_module_learned_on_the_teacher_is_handed_on_bit_for_bit(tmp_path: Path, store: Path) -> None:
    cfg = composed("method=kd", *TINY, "data=digits", "teacher=small_conv_narrow", "student=small_conv_tiny")
    with open_dict(cfg):
        cfg = OmegaConf.merge(cfg, OmegaConf.create(FACTORS))
    quiet()
    run(check(cfg), tmp_path / "run")  # type: ignore[arg-type]
    files = {"stage": tmp_path / "run" / "stages" / "paraphraser" / "factors.safetensors"}
    kept = store.glob("fit-*/factors.safetensors")
    (files["student"],) = [file for file in kept if any(name.startswith("student.") for name in load_file(file))]
    learned, given = (load_file(file) for file in files.values())
    assert learned
    for name, value in learned.items():
        assert torch.equal(value, given[f"paraphraser.{name}"]), name
    assert not (tmp_path / "run" / "stages" / "paraphraser" / "student.safetensors").exists()  # it was not trained
    assert not any("student." in name for name in load_file(tmp_path / "run" / "student.safetensors"))


@pytest.mark.slow
def test_the_student_of_a_stage_teaches_as_the_same_network_from_a_file_does(tiny: Callable[..., Any]) -> None:
    nets = ("teacher=small_conv", "student=small_conv_tiny", "method=kd")
    chain = tiny(*nets, "stages=assistant")
    assistant = chain.folder / "stages" / "assistant" / "student.safetensors"
    alone = tiny(*nets, "teacher=small_conv_narrow", f"teacher.weights={assistant}")
    bits = [load_file(each.folder / "student.safetensors") for each in (chain, alone)]
    assert all(torch.equal(value, bits[1][name]) for name, value in bits[0].items())
    assert chain["metrics"]["assistant/accuracy"] == alone["metrics"]["teacher/accuracy"]
    assert chain["models"]["assistant"] == alone["models"]["teacher"]
    assert chain["models"]["teacher"] != alone["models"]["teacher"]
    assert "direct/accuracy" in chain["metrics"]


def test_a_student_is_born_again_without_any_teacher(tiny: Callable[..., Any]) -> None:
    nets = ("teacher=none", "student=small_conv_tiny", "method=kd", "stages=born_again")
    first = tiny(*nets, "born_again.method=${teacher.fit.method}")
    assert first["metrics"]["born_again/accuracy"] is not None
    with pytest.raises(ConfigError, match=r"stages\[0\]\.method: Distill needs a teacher, but teacher=none"):
        check(composed(*nets))
