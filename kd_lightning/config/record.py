"""What a call of :func:`kd_lightning.distill` puts into a configuration, and the record that it leaves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from kd_lightning.store.artifacts import writing


def chosen(cfg: DictConfig, key: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    return OmegaConf.select(cfg, key)


def put(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """``cfg`` with other values.

    Args:
        cfg: the configuration; stays as it is.
        values: dotted key -> value; dicts and lists take the place of whatever is there.
    """
    new = cfg.copy()
    with open_dict(new):
        for key, value in values.items():
            OmegaConf.update(new, key, value, merge=False)
    return new


def leave(cfg: DictConfig, overrides: Sequence[str], names: Mapping[str, str | None], folder: Path) -> None:
    """Write the files that Hydra leaves in a run folder, so that every other command can read the run.

    Args:
        cfg: the configuration.
        overrides: as the command line would have them.
        names: the chosen members of the groups.
        folder: the run folder.
    """
    files = {"config": cfg, "overrides": list(overrides), "hydra": {"hydra": {"runtime": {"choices": dict(names)}}}}
    with writing(folder):
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml")
