"""A run of two fits: what the first leaves, the second reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import composed

from kd_lightning.config.check import check
from kd_lightning.errors import ConfigError
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
