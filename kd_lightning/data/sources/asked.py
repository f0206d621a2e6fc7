"""Images that the teacher is asked about once: the answers are counted, kept, and never asked for again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd_lightning.artifacts import writing
from kd_lightning.data.sources.context import Context
from kd_lightning.errors import ConfigError
from kd_lightning.inference import predict
from kd_lightning.teacher.query import QueryTeacher

CHUNK = 500
"""Answers are stored so many at a time."""


def ask(context: Context, images: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's answers to images, asked for now or earlier.

    Args:
        context: of the source.
        images: uint8 (N, C, H, W): the very pixels that training will see.

    Returns:
        Positions (M,) int64 of the images that it answered, and the answers (M, K), usable as logits.

    Raises:
        BudgetExceeded: ``teacher.budget`` is smaller than the number of images.
        ConfigError: there is no teacher.
    """
    if context.teacher is None:
        raise ConfigError("this source asks a teacher, but teacher=none: choose one with teacher=NAME")
    chunks = dict(enumerate(images.split(CHUNK)))
    spent = context.teacher.asked
    if isinstance(context.teacher, QueryTeacher):
        context.teacher.require(len(images))

    def build(folder: Path) -> None:
        for i, chunk in chunks.items():  # what was paid for before a kill is not paid again
            if not _part(folder, i).is_file():
                answers = predict(context.teacher, chunk, batch_size=CHUNK, device=context.device)
                with writing(folder):
                    save_file({"answers": answers}, folder / "part")
                    (folder / "part").replace(_part(folder, i))

    pixels = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    config = {"teacher": context.keys.get("teacher"), "images": pixels, "version": 2}
    folder = context.store.obtain("answers", config, build)
    context.teacher.asked = spent + len(images)  # also where an earlier run paid
    context.notes["queries"] = context.notes.get("queries", 0) + len(images)
    answers = torch.cat([load_file(_part(folder, i))["answers"] for i in chunks])
    return torch.arange(len(images)), answers


def _part(folder: Path, number: int) -> Path:
    return folder / f"answers_{number:05d}.safetensors"
