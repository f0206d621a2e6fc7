"""Reads, changes and writes the recorded configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.config import resolvers
from kd_lightning.config.node import thaw
from kd_lightning.store.files import writing


def resolved(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve all references of a recorded configuration, also to the environment: only for trusted records.

    Args:
        tree: nested dicts and lists.
    """
    resolvers.register()
    plain: Any = OmegaConf.to_container(OmegaConf.create(dict(tree)), resolve=True)
    return plain


def whole(cfg: DictConfig, names: Mapping[str, str | None]) -> dict[str, Any] | None:
    """A composed configuration in plain values, as it is recorded; None if a reference cannot be resolved.

    Args:
        cfg: the configuration.
        names: the chosen members of the groups.
    """
    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:
        return None
    return {key: value for key, value in plain.items() if key != "main"} | {"names": {**plain["names"], **names}}


def chosen(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key, nested dicts and lists resolved; None if there is none."""
    found = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def put(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A copy of ``cfg`` with some values replaced.

    Args:
        cfg: the configuration; not changed.
        values: dotted key -> value; dicts and lists replace the old value, they are not merged.
    """
    new = cfg.copy()
    with open_dict(new):
        for key, value in values.items():
            OmegaConf.update(new, key, value, merge=False)
    return new


def leave_plain(record: Mapping[str, Any], folder: Path) -> None:
    """Replace Hydra's record of a configuration by plain values, which can be read without resolving anything.

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
    """Write the files that Hydra writes to a run folder, so that the other commands can read the run.

    Args:
        cfg: the configuration.
        overrides: as typed on the command line.
        names: the chosen members of the groups.
        folder: the run folder.
    """
    files: dict[str, Any] = {
        "config": cfg,
        "overrides": list(overrides),
        "hydra": {"hydra": {"runtime": {"choices": dict(names), "cwd": str(Path.cwd())}}},
    }
    with writing(folder):
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml")
