"""Offers every file of ``network/`` as a choice of ``teacher=`` and of ``student=``.

``student=resnet18`` is ``network/resnet18`` at ``student``; ``teacher=resnet34`` is ``teacher/none`` with
``network/resnet34`` at ``teacher.net``; ``student=regressor/resnet20`` is ``network/regressor`` with
``network/resnet20`` at its ``net``. Networks of a user's own (``--config-dir``) are offered, too. Files in
``teacher/`` and ``student/`` come first. A configuration without ``teacher/network`` is left as it is.

Every ``kd-lightning`` command imports this file, so it imports nothing heavy.
"""

from typing import Any, Optional

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

PLACES = ("teacher", "student")


class NetworkSource(ConfigSource):
    """The members of ``network/``, as members of ``teacher/`` and ``student/``."""

    @staticmethod
    def scheme() -> str:
        """Name of the source in Hydra's search path."""
        return "kd-networks"

    def available(self) -> bool:
        """Always true: the source has no folder."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether it is ``teacher`` or ``student``, in a configuration that has ``teacher/network``."""
        return config_path in PLACES and _exists("teacher/network")

    def is_config(self, config_path: str) -> bool:
        """Whether there is a network of that name."""
        place, _, name = config_path.partition("/")
        return self.is_group(place) and bool(_networks(name))

    def load_config(self, config_path: str) -> ConfigResult:
        """The network of that name, as a file in ``teacher/`` or ``student/`` would define it."""
        place, _, name = config_path.partition("/")
        networks = _networks(name)
        if place not in PLACES or not networks:
            raise ConfigLoadError(f"there is no network of the name of {config_path}")
        outer, inner = ("net", "net.net") if place == "teacher" else ("_here_", "net")
        defaults: list[Any] = ["none"] if place == "teacher" else []
        defaults += [{f"/network@{at}": network} for at, network in zip((outer, inner), networks, strict=False)]
        config = OmegaConf.create({"defaults": defaults})
        return ConfigResult(config=config, path=self.full_path(), provider=self.provider, header={"package": None})

    def list(self, config_path: str, results_filter: Optional[ObjectType]) -> list[str]:  # noqa: UP045
        """The names of all networks."""
        from kd_lightning.config.overrides import members

        shown = self.is_group(config_path) and results_filter in (None, ObjectType.CONFIG)
        return members("network") if shown else []


class NetworksPlugin(SearchPathPlugin):
    """Adds the source to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append it, so that files come first."""
        search_path.append(provider="kd_lightning", path=f"{NetworkSource.scheme()}://")


def _networks(name: str) -> list[str]:
    """The networks that a name refers to, an outer one before its inner one; empty if one does not exist."""
    if _exists(f"network/{name}"):
        return [name]
    outer, _, inner = name.partition("/")
    return [outer, inner] if inner and _exists(f"network/{outer}") and _exists(f"network/{inner}") else []


def _exists(config_path: str) -> bool:
    if not GlobalHydra.instance().is_initialized():
        return False
    sources = GlobalHydra.instance().config_loader().get_sources()
    return any(source.is_config(config_path) for source in sources if not isinstance(source, NetworkSource))
