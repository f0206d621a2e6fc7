"""The keys of a configuration that the run itself reads, and their types."""

from __future__ import annotations

from typing import Any, Literal

from kd_lightning.networks.outputs import KINDS
from kd_lightning.teachers.access import LEVELS

KEYS: dict[str, Any] = {
    **dict.fromkeys(
        ("source", "student", "method", "trainer", "controls", "metrics", "main", "paper", "sweep", "data"), dict
    ),
    **dict.fromkeys(("teacher", "artifacts"), dict),
    "logger": dict | None,
    "stages": list[dict],
    "names": dict,
    "seed": int,
    "plan": bool,
    "init": str | None,
    "taught_by": str | None,
    "result_name": str | None,
    "as_published": bool,
    "memory_format": Literal["contiguous", "channels_last"],
    "compile": Literal["inductor", "cudagraphs", "aot_eager"] | None,
    "fold_batchnorm": bool,
    "sweep.resume": str | None,
    "sweep.source_seed": int,
    "artifacts.root": str | None,
    "artifacts.reuse": bool,
    "artifacts.scope": Literal["student", "all"],
    "data.load": dict,
    "data.num_classes": int,
    "data.channels": int,
    "data.size": int | list[int],
    "data.network_size": int | list[int],
    "data.mean": list[float],
    "data.std": list[float],
    "data.recipe": dict,
    "data.recipe.epochs": int,
    "data.recipe.batch_size": int,
    "data.recipe.augment": list[dict],
    "data.recipe.optimizer": dict,
    "data.recipe.scheduler": dict | None,
    "teacher.net": dict | None,
    "teacher.client": dict | None,
    "teacher.weights": str | None,
    "teacher.mean": list[float],
    "teacher.std": list[float],
    "teacher.class_order": list[int] | None,
    "teacher.outputs": Literal[KINDS],
    "teacher.size": int | list[int] | None,
    "teacher.access": Literal[LEVELS],
    "teacher.decimals": int | None,
    "teacher.k": int,
    "teacher.abstain_below": float | None,
    "teacher.smoothing": float,
    "teacher.budget": int | None,
    "teacher.total_budget": int | None,
    "teacher.eval_budget": int,
    "teacher.price": float,
    "teacher.ledger": str | None,
    "teacher.min_coverage": float,
    "teacher.drift_checks": int | None,
    "teacher.reference": str | None,
    "teacher.pace": dict,
    "teacher.check": bool,
    "teacher.seed": int,
    "teacher.fit": dict,
    "teacher.fit.source": dict,
    "teacher.fit.method": dict,
    "teacher.fit.trainer": dict,
}
"""Keys that the run reads itself; all others are below a ``_target_`` or referred to by ``${...}``."""
