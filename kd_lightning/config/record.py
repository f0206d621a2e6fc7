"""A run's record of its configuration: read, written, and values put into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kd_lightning.errors import UserError
from kd_lightning.store.artifacts import writing


def read_record(path: Path) -> Any:
    """A YAML file that Hydra left in a run folder; what it refers to is resolved when it is read.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def is_mapping(record: Any) -> bool:
    """Whether a record holds settings, and not a list."""
    return isinstance(record, DictConfig)


def chosen(cfg: Any, key: str) -> Any:
    """What stands at a dotted key, nested dicts and lists resolved; None where nothing does.

    Raises:
        OmegaConfBaseException: it refers to something that cannot be read.
    """
    found = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def chosen_or_none(cfg: Any, key: str) -> Any:
    """The same, None where it cannot be read."""
    try:
        return chosen(cfg, key)
    except (OmegaConfBaseException, ValueError):
        return None


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
    files: dict[str, Any] = {
        "config": cfg,
        "overrides": list(overrides),
        "hydra": {"hydra": {"runtime": {"choices": dict(names)}}},
    }
    with writing(folder):
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml")
