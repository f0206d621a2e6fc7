"""Provenance and cost of a result: versions, commit, settings, peak memory."""

from __future__ import annotations

import platform
import resource
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kd_lightning.config.composition import Composition
from kd_lightning.core.file_format import FORMAT_VERSION
from kd_lightning.store.files import write_json


def header(names: Mapping[str, str | None], seed: int | None, *, teacher: bool = True) -> dict[str, Any]:
    """The first entries of every result, including failed ones.

    Args:
        names: the chosen members of the groups.
        seed: of the student's fit.
        teacher: whether there is one; if not, the name is ``none``.
    """
    return {
        "format_version": FORMAT_VERSION,
        "system": names.get("method"),
        "experiment": names.get("experiment"),
        "method": names.get("method"),
        "data": names.get("data"),
        "source": names.get("source"),
        "teacher": names.get("teacher") if teacher else "none",
        "student": names.get("student"),
        "scale": names.get("scale"),
        "seed": seed,
        "versions": {p: version(p) for p in ("kd_lightning", "torch", "lightning", "torchvision")}
        | {"python": platform.python_version()},
        "git": git_commit(),
    }


def header_of(composition: Composition) -> dict[str, Any]:
    """The first entries of a composition's result."""
    return header(composition.names, composition.seed, teacher=composition.teacher is not None)


def leave_reason(folder: Path, head: Mapping[str, Any], status: str, reason: str) -> None:
    """Write to ``result.json`` why a run has no result.

    Args:
        folder: the run folder.
        head: as :func:`header` returns it.
        status: ``failed`` or ``stopped``.
        reason: one line.
    """
    write_json(folder / "result.json", {**head, "status": status, "reason": reason, "metrics": {}})


def parameters(net: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def peak_memory() -> int:
    """Peak memory in bytes: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def git_commit() -> str | None:
    """The commit of this checkout, with ``+changes`` if it is modified; None for an installed package."""
    here = Path(__file__).parents[2]
    if not (here / "pyproject.toml").is_file():  # an installed package may be inside another repository
        return None
    how: dict[str, Any] = {"cwd": here, "capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], **how)
        dirty = subprocess.run(["git", "status", "--porcelain"], **how)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
