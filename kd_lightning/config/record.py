"""A run's record of its configuration: read, written, and values put into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from kd_lightning.config import resolvers
from kd_lightning.config.node import thaw
from kd_lightning.store.artifacts import writing


def resolved(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration, what refers to others or to the environment resolved: only for those that are trusted.

    Args:
        tree: nested dicts and lists.
    """
    resolvers.register()
    plain: Any = OmegaConf.to_container(OmegaConf.create(dict(tree)), resolve=True)
    return plain


def chosen(cfg: DictConfig, key: str) -> Any:
    """What stands at a dotted key, nested dicts and lists resolved; None where nothing does."""
    found = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


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


def leave_plain(record: Mapping[str, Any], folder: Path) -> None:
    """Write a configuration over what Hydra noted of it: plain values, which others read without resolving anything.

    Args:
        record: the whole configuration.
        folder: the run folder.
    """
    file = folder / ".hydra" / "config.yaml"
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(".config.yaml.part")
        part.write_text(OmegaConf.to_yaml(OmegaConf.create(thaw(record))))
        part.replace(file)


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
