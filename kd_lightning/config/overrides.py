"""Reads the command line's overrides one by one, so that all wrong ones are named in one message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from kd_lightning.config.groups import members
from kd_lightning.config.resolvers import conf_dir
from kd_lightning.config.spelling import dotted, nearest, suggest
from kd_lightning.errors import ConfigError

REFUSALS = (HydraException, OmegaConfBaseException, MarkedYAMLError, ValueError)


class Composed(NamedTuple):
    """Result of composing a configuration from overrides.

    Args:
        cfg: the configuration with all overrides that can be composed, including those of unknown keys.
        problems: a line for each of the other overrides.
        unset: key -> override of a key that no file sets; only ``check`` can tell whether that is wrong.
    """

    cfg: DictConfig
    problems: list[str]
    unset: dict[str, str]


def read(
    overrides: Sequence[str],
    config_dirs: Sequence[str] = (),
    *,
    config_path: str | None = None,
    config_name: str = "run",
) -> Composed:
    """Compose a configuration, leaving out the overrides that cannot be composed.

    Args:
        overrides: as typed, without sweeps.
        config_dirs: further folders of groups (``--config-dir``).
        config_path: the folder of the groups, if not the package's own.
        config_name: the primary file.

    Raises:
        ConfigError: the configuration cannot be composed even without overrides.
    """
    with loaded(config_dirs, config_path):
        if (found := _with_added_keys(config_name, overrides)) is not None:
            return found
        try:
            cfg = compose(config_name)
        except REFUSALS as error:
            raise ConfigError(_explain(config_name, error)) from error
        kept: list[str] = []
        problems: list[str] = []
        unset: dict[str, str] = {}
        # groups before values, because a value's key may come with its group
        for override in sorted(overrides, key=lambda o: "." in o.partition("=")[0]):
            try:
                cfg = compose(config_name, [*kept, override])
                kept.append(override)
            except REFUSALS as error:
                if str(error).startswith("Could not override") and not override.startswith("hydra."):
                    with suppress(*REFUSALS):
                        cfg = compose(config_name, [*kept, f"++{override}"])
                        kept.append(f"++{override}")
                        unset[override.partition("=")[0]] = override
                        continue
                problems.append(_explain(override, error, compose(config_name, kept, return_hydra_config=True)))
        return Composed(cfg, problems, unset)


def _with_added_keys(config_name: str, overrides: Sequence[str]) -> Composed | None:
    """All overrides, keys that no file sets among them; None if anything else is wrong with them."""
    given = list(overrides)
    unset: dict[str, str] = {}
    while True:
        try:
            return Composed(compose(config_name, given), [], unset)
        except REFUSALS as error:
            key = match[1] if (match := re.match(r"Could not override '([^']+)'", str(error))) else "hydra."
            if key.startswith("hydra.") or key in unset:
                return None
            at = next((i for i, override in enumerate(given) if override.partition("=")[0] == key), None)
            if at is None:
                return None
            unset[key] = given[at]
            given[at] = f"++{given[at]}"


def absent(overrides: Iterable[str], config_dirs: Sequence[str] = (), config_path: str | None = None) -> list[str]:
    """A line for each ``GROUP=MEMBER`` whose group has no such member; composes nothing, so it takes no time.

    Args:
        overrides: as typed, without sweeps.
        config_dirs: further folders of groups.
        config_path: the folder of the groups, if not the package's own.
    """
    with loaded(config_dirs, config_path):
        sources = GlobalHydra.instance().config_loader().get_sources()
        lines = []
        for override in overrides:
            key, _, name = override.partition("=")
            group = key.lstrip("+").partition("@")[0]
            if "." in group or not re.fullmatch(r"[\w/+-]+", name) or name == "null":
                continue
            if any(s.is_group(group) for s in sources) and not any(s.is_config(f"{group}/{name}") for s in sources):
                lines.append(f"{override}: there is no {group} called {name}{_nearest_member(group, name, key)}")
        return lines


class ConfigDirs(SearchPathPlugin):
    """Puts the folders of ``--config-dir`` on Hydra's search path, after the groups of the package."""

    folders: ClassVar[list[str]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders."""
        for folder in self.folders:
            search_path.append("command-line", f"file://{Path(folder).absolute()}")


@contextmanager
def loaded(config_dirs: Sequence[str] = (), config_path: str | None = None) -> Iterator[None]:
    """Inside the ``with`` block, Hydra is initialised with the search path of the command line.

    Raises:
        ConfigError: one of the folders does not exist.
    """
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir {folder}: there is no such folder")
    main = config_path or str(conf_dir())
    Plugins.instance().register(ConfigDirs)
    GlobalHydra.instance().clear()
    ConfigDirs.folders = list(config_dirs)
    try:
        if main.startswith("pkg://"):
            initialize_config_module(main.removeprefix("pkg://"), "kd-lightning", "1.3")
        else:
            initialize_config_dir(str(Path(main.removeprefix("file://")).absolute()), "kd-lightning", "1.3")
        ConfigDirs.folders = []
        yield
    finally:
        ConfigDirs.folders = []
        GlobalHydra.instance().clear()


def refusal(faults: Sequence[str]) -> ConfigError:
    """An error that lists all faults."""
    return ConfigError("this composition cannot run:\n  " + "\n  ".join(faults))


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job, one without a sweep; empty if only the sweeper can work them out."""
    parser = OverridesParser.create()
    values: dict[str, list[str]] = {}
    wrong = []
    for override in overrides:
        try:
            (parsed,) = parser.parse_overrides([override])
        except OverrideParseException:
            wrong.append(override)
            continue
        key = parsed.get_key_element()
        if not parsed.is_sweep_override():
            values[key] = [parsed.get_value_element_as_str()]
            continue
        try:
            values[key] = list(parsed.sweep_string_iterator())
        except (HydraException, AssertionError):  # an interval or a glob pattern
            return []
    return [[*map("=".join, zip(values, job, strict=True)), *wrong] for job in product(*values.values())]


def swept(
    overrides: Sequence[str], config_dirs: Sequence[str] = (), config_path: str | None = None, config_name: str = "run"
) -> list[str] | None:
    """The sweep that the composition itself contains (``sweep=NAME``), as overrides; None if it contains none."""
    with loaded(config_dirs, config_path):
        hydra: Any = GlobalHydra.instance().hydra
        try:
            cfg = hydra.compose_config(config_name, list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False)
        except REFUSALS:
            asks = any(override.lstrip("+").startswith(("sweep=", "hydra.mode=")) for override in overrides)
            return [] if asks else None
        if cfg.hydra.mode != RunMode.MULTIRUN:
            return None
        return [f"{key}={values}" for key, values in (cfg.hydra.sweeper.get("params") or {}).items()]


def _explain(override: str, error: Exception, cfg: DictConfig | None = None) -> str:
    """What is wrong with an override, in one line that begins with it."""
    key, _, value = override.partition("=")
    text = str(error).strip()
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        return f"{override}: {mark.name}, line {mark.line + 1}: {error.problem}" if mark else f"{override}: {text}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing(override, error.missing_cfg_file)
    if isinstance(error, OverrideParseException):
        if not value:
            return f"{override}: expected key=value"
        return f"{override}: not readable; if the value holds one of =,:[]{{}}() quote it: '{key}=\"{value}\"'"
    if text.startswith("Could not override") and cfg is not None:
        return f"{key}: there is no such setting{suggest(key, [], dotted(cfg))}"
    if "Could not append" in text or text.startswith("Multiple values"):
        return f"{override}: {key.lstrip('+')} is there already, write it without +"
    if text.startswith("Could not delete"):
        return f"{override}: there is nothing of that name to delete"
    if text.startswith("Config group override must be a string"):
        if value == "null" and "none" in members(key):
            return f"{override}: expected the name of a member; for none of them type {key}=none"
        return f"{override}: expected the name of a {key}, got a value{_nearest_member(key, value)}"
    return f"{override}: {text.splitlines()[0]}"


def _explain_missing(override: str, file: str) -> str:
    key, _, value = override.partition("=")
    group = key.lstrip("+~").partition("@")[0]
    typed = file == f"{group}/{value}"
    if group in ("student", "teacher", "network") and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", value):
        return (
            f"{override}: a network of your own is one file, my_conf/network/mine.yaml with _target_: {value} and its "
            f"settings, and then --config-dir my_conf {group}=mine"
        )
    if not typed:
        group, _, value = file.rpartition("/")
    hint = _nearest_member(group, value)
    return (
        f"{override}: there is no {group} called {value}{hint}"
        if typed
        else (f"{override}: it asks for {group}={value}, and there is no such {group}{hint}")
    )


def _nearest_member(group: str, value: str, key: str | None = None) -> str:
    """The end of a message, which suggests the nearest member of a group, given by ``key``; Hydra is initialised."""
    there = members(group)
    around = value.rpartition("/")[0]
    if around in there:  # a network inside another one
        there = [f"{around}/{name}" for name in there]
    near = nearest(value, there) or [name for name in there if value in name]
    return f"; did you mean {key or group}={near[0]}?" if near else f"; there are {', '.join(there)}" if there else ""


def misspelt_keys(found: Composed) -> list[str]:
    """A line for each key that no file sets, if all of them nearly spell one that stands beside them; else none."""
    lines = []
    for key in found.unset:
        parent, _, leaf = key.rpartition(".")
        beside = OmegaConf.select(found.cfg, parent) if parent else found.cfg
        there = [str(name) for name in beside if name != leaf] if isinstance(beside, DictConfig) else []
        near = nearest(leaf, there, cutoff=0.75)
        if not near:
            return []
        lines.append(f"{key}: no file sets it; did you mean {'.'.join(filter(None, [parent, near[0]]))}?")
    return lines
