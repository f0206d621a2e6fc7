"""Reads the command line's overrides one by one, so that all wrong ones are named in one message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.resolvers import conf_dir


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep; one job without any ``a,b`` in them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    assert issubclass(BasicSweeper, Sweeper)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def read(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[DictConfig, list[str]]:
    """Compose, leaving out what cannot be.

    Args:
        overrides: as typed, without sweeps.
        config_dirs: further folders of groups (``--config-dir``).

    Returns:
        The composition of those overrides that are right, and a line for each that is wrong.
    """
    search = (
        [f"hydra.searchpath=[{','.join(f'file://{Path(d).absolute()}' for d in config_dirs)}]"] if config_dirs else []
    )
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            return compose("run", [*search, *overrides], return_hydra_config=False), []
        except (HydraException, OmegaConfBaseException):
            pass
        kept: list[str] = list(search)
        problems = []
        # groups before values, because a value's key may come with its group
        for override in sorted(overrides, key=lambda o: "." in o.partition("=")[0]):
            try:
                compose("run", [*kept, override])
                kept.append(override)
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(_explain(override, error, compose("run", kept)))
        return compose("run", kept), problems


def _explain(override: str, error: Exception, cfg: DictConfig) -> str:
    key, _, value = override.partition("=")
    key = key.lstrip("+~").partition("@")[0]
    if isinstance(error, MissingConfigException) and error.options:
        close = difflib.get_close_matches(value, error.options, n=1, cutoff=0.5)
        hint = f"; did you mean {key}={close[0]}?" if close else ""
        return f"{override}: there is no {key} called {value}{hint} There are {', '.join(sorted(error.options))}"
    if "." not in key or "is not in struct" in str(error) or "Could not override" in str(error):
        return f"{override}: there is no setting {key}{_nearest(key, cfg)}"
    return f"{override}: {str(error).splitlines()[0]}"


def _nearest(key: str, cfg: DictConfig) -> str:
    known = list(_keys(cfg)) + _groups()
    leaf = key.rpartition(".")[2]
    same_leaf = [k for k in known if k.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(key, same_leaf or known, n=1, cutoff=0.0 if same_leaf else 0.6)
    if not close and (
        leaves := difflib.get_close_matches(leaf, [k.rpartition(".")[2] for k in known], n=1, cutoff=0.7)
    ):
        close = [next(k for k in known if k.rpartition(".")[2] == leaves[0])]
    return f"; did you mean {close[0]}?" if close else ""


def _keys(cfg: DictConfig, path: str = "") -> Iterable[str]:
    for key in cfg:
        full = f"{path}.{key}" if path else str(key)
        if full == "main":
            continue
        yield full
        if not OmegaConf.is_missing(cfg, key):
            try:
                node = cfg[key]
            except OmegaConfBaseException:
                continue
            if isinstance(node, DictConfig):
                yield from _keys(node, full)


def _groups() -> list[str]:
    return [folder.name for folder in conf_dir().iterdir() if folder.is_dir()]
