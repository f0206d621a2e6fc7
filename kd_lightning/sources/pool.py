"""Pools of images, made once batch by batch and stored; an interrupted pool is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from kd_lightning.core.strangers import read_tensors
from kd_lightning.core.user_code import architecture, code_of
from kd_lightning.errors import ConfigError, DataError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.context import Context
from kd_lightning.store.artifacts import remedy
from kd_lightning.store.files import writing
from kd_lightning.teachers.white_box import FrozenTeacher
from kd_lightning.tracking.image_grids import save_grid, to_uint8

SLACK = 0.01
"""How far values may be outside [0, 1] by rounding."""


def teacher_of(context: Context, source: str) -> Normalized:
    """The teacher's network on the device, through which gradients pass.

    Raises:
        ConfigError: there is no teacher, or it is not white-box.
    """
    if not isinstance(context.teacher, FrozenTeacher):
        has = "teacher=none" if context.teacher is None else f"teacher.access={context.teacher.access}"
        raise ConfigError(
            f"source={source} optimises images by the teacher's gradients, but {has}: "
            "choose a teacher with teacher=NAME teacher.access=white"
        )
    net = context.teacher.to(context.device).net
    assert isinstance(net, Normalized)
    return net


def made_by(source: Any, *networks: nn.Module | None) -> dict[str, Any]:
    """What a pool's images are made by, besides weights: the networks, and the code of a source that is not ours."""
    return {"made_by": [code_of(type(source)), *map(architecture, networks)]}


def checked(images: Tensor, generator: nn.Module) -> Tensor:
    """The images of a generator, unchanged.

    Raises:
        DataError: they hold NaN, or values outside [0, 1].
    """
    low, high = images.detach().float().aminmax()
    if not (low >= -SLACK and high <= 1 + SLACK):  # false for NaN as well
        raise DataError(
            f"the generator {type(generator).__name__} makes images in [{float(low):.3g}, {float(high):.3g}], expected "
            "[0, 1]: one whose last layer is tanh has to convert its images, (x + 1) / 2"
        )
    return images


def obtain_pool(
    context: Context,
    config: Mapping[str, Any],
    batches: int,
    make: Callable[[int, np.random.Generator], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The tensors that ``make`` returns for each batch, concatenated; made with the teacher or read from the store.

    Args:
        context: of the source.
        config: the source's settings, with its ``seed``, ``images`` and ``steps``.
        batches: their number.
        make: as for :func:`obtain_parts`.
    """
    spent = context.teacher.asked
    parts = obtain_parts(context, {**config, "teacher": context.keys["teacher"]}, batches, make)
    pool = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    context.teacher.asked = spent + len(pool["images"]) * (config["steps"] + 1)  # also where an earlier run did it
    context.notes["images_synthesised"] = len(pool["images"])
    return pool


def obtain_parts(
    context: Context,
    config: Mapping[str, Any],
    batches: int,
    make: Callable[[int, np.random.Generator], dict[str, Tensor]],
) -> list[dict[str, Tensor]]:
    """The tensors that ``make`` returns for each batch, made or read; memory-mapped from the files.

    A preview, ``grid.png``, is stored with them: a hundred images, evenly spaced from first to last.

    Args:
        context: of the source.
        config: plain data that determines the tensors, with a ``seed``.
        batches: their number.
        make: number of a batch and its random generator -> ``images`` (N, C, H, W) in [0, 1], stored as uint8, and
            other tensors.
    """

    def build(folder: Path) -> None:
        for i in tqdm(range(batches), desc="pool".ljust(12), unit="batch", dynamic_ncols=True, disable=None):
            if not _part(folder, i).is_file():
                made = make(i, np.random.default_rng((config["seed"], i)))
                made["images"] = to_uint8(made["images"])
                with writing(folder):
                    save_file({k: v.cpu().contiguous() for k, v in made.items()}, folder / "part")
                    (folder / "part").replace(_part(folder, i))
        parts = read(folder)
        count = sum(len(part["images"]) for part in parts)
        save_grid(gathered(parts, torch.linspace(0, count - 1, min(100, count)).long()), folder / "grid.png")

    def read(folder: Path) -> list[dict[str, Tensor]]:
        return [read_tensors(_part(folder, i), advice=remedy(folder)) for i in range(batches)]

    return read(context.store.obtain("pool", config, build))


def gathered(parts: Sequence[dict[str, Tensor]], rows: Tensor) -> Tensor:
    """Images uint8 (M, C, H, W) of a pool.

    Args:
        parts: as :func:`obtain_parts` returns them.
        rows: positions in the pool, (M,), ascending.
    """
    begin, found = 0, []
    for part in parts:
        end = begin + len(part["images"])
        found.append(part["images"][rows[(rows >= begin) & (rows < end)] - begin])
        begin = end
    return torch.cat(found)


def noise_on(context: Context, random: np.random.Generator) -> torch.Generator:
    """A torch generator on the device, seeded from ``random``."""
    return torch.Generator(context.device).manual_seed(int(random.integers(2**63)))


def _part(folder: Path, number: int) -> Path:
    return folder / f"pool_{number:05d}.safetensors"
