"""Which file each value of a composition comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.config.overrides import loaded, read, refusal
from kd_lightning.config.resolvers import conf_dir

TYPED = "command line"


class Origin(NamedTuple):
    """A value and the place that set it.

    Args:
        key: dotted.
        value: as text; for a reference, the value referred to and the reference.
        file: the last file that sets it, or ``command line``.
    """

    key: str
    value: str
    file: str


def origins(overrides: Sequence[str], within: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> list[Origin]:
    """Every value of a composition, in its order, with the file that sets it.

    Args:
        overrides: as typed, without sweeps.
        within: keys; only values at or below them are returned. Empty for all.
        config_dirs: further folders of groups.

    Raises:
        ConfigError: the overrides cannot be composed.
    """
    found = read(overrides, config_dirs)
    if wrong := [*found.problems, *(f"{key}: no file sets it" for key in found.unset)]:
        raise refusal(wrong)
    with loaded(config_dirs):
        setters = _setters(overrides)
    inside = [(key, value) for key, value in _leaves(found.cfg) if _is_within(key, within)]
    return [Origin(key, value, setters[key][1]) for key, value in inside]


def _is_within(key: str, within: Sequence[str]) -> bool:
    return not within or any(key == top or key.startswith(f"{top}.") for top in within)


def _leaves(node: DictConfig, path: str = "") -> Iterator[tuple[str, str]]:
    for key in map(str, node):
        full = f"{path}.{key}" if path else key
        raw: Any = node._get_node(key)
        if full == "main":  # repeats other keys
            continue
        if isinstance(raw, DictConfig) and not raw._is_interpolation() and len(raw):
            yield from _leaves(raw, full)
        else:
            yield full, _shown(node, key, raw)


def _shown(node: DictConfig, key: str, raw: Any) -> str:
    if not raw._is_interpolation():
        return _text(raw)
    reference = str(raw._value())
    try:
        value = node[key]
    except OmegaConfBaseException:
        return reference
    return reference if isinstance(value, DictConfig | ListConfig) else f"{_text(value)}  {reference}"


def _text(value: Any) -> str:
    plain: Any = OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value
    plain = plain._value() if isinstance(plain, Node) else plain
    return "null" if plain is None else str(plain).lower() if isinstance(plain, bool) else str(plain)


def _setters(overrides: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Dotted key -> the value last set at it, and where; Hydra must be initialised."""
    loader = GlobalHydra.instance().config_loader()
    setters: dict[str, tuple[Any, str]] = {}
    for default in loader.compute_defaults_list("run", list(overrides), RunMode.RUN).defaults:
        if default.config_path and not default.config_path.startswith("hydra/"):
            node, file = _content(default.config_path)
            _set(setters, (default.package or "").removeprefix("_global_"), node, file)
    sources = loader.get_sources()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, None if override.is_delete() else override.value()
        chooses = any(source.is_group(key) for source in sources) and not isinstance(value, Mapping)
        if not override.is_delete() and not chooses:
            _set(setters, key, value, TYPED)
    return setters


def _content(config_path: str) -> tuple[dict[str, Any], str]:
    """The content of a file without its defaults, and the path under which a user would open it."""
    sources = GlobalHydra.instance().config_loader().get_sources()
    source = next(source for source in sources if source.is_config(config_path))
    plain: Any = OmegaConf.to_container(source.load_config(config_path).config, resolve=False)
    plain = {key: value for key, value in (plain or {}).items() if key != "defaults"}
    above, _, section = config_path.rpartition("/")
    for path, part in ((config_path, ""), (above, f", {section}")):  # a recipe is a part of a file
        for folder in (Path(source.path) for source in sources if source.scheme() == "file"):
            if (file := folder / f"{path}.yaml").is_file():
                near = file.relative_to(conf_dir().parent) if file.is_relative_to(conf_dir().parent) else file
                return plain, f"{near}{part}"
    return plain, config_path


def _set(setters: dict[str, tuple[Any, str]], path: str, node: Any, file: str) -> None:
    if isinstance(node, Mapping) and node:
        _copy_referred(setters, path)
        for key, value in node.items():
            _set(setters, f"{path}.{key}" if path else str(key), value, file)
    else:
        setters[path] = (node, file)


def _copy_referred(setters: dict[str, tuple[Any, str]], path: str) -> None:
    """Copy the entries that a reference at ``path`` refers to, because Hydra merges into a copy of them."""
    referred = path
    while (value := str(setters.get(referred, ("", ""))[0])).startswith("${") and value.endswith("}"):
        referred = value[2:-1]
    if referred != path:
        del setters[path]
        below = {key: setter for key, setter in setters.items() if key.startswith(f"{referred}.")}
        setters.update({path + key.removeprefix(referred): setter for key, setter in below.items()})
