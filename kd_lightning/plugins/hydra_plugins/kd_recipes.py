"""Chooses the recipe of a run: what a method needs on a data set, at a scale.

``recipe/METHOD.yaml`` holds recipes by name, and each is read as if it were a file ``recipe/METHOD/NAME.yaml`` (such
files work, too). ``run.yaml`` asks for ``recipe: METHOD+DATA+SCALE+TEACHER`` and gets the first that exists of

* ``DATA_TEACHER_SCALE`` and ``DATA_SCALE``, then the same of the data's family, then ``SCALE``, of the method
* all of these of the method's family

and nothing where there is none, or with ``recipe=none``. A family is another name of the same kind, which a file in
``data/`` or ``method/`` states in its first lines: ``# @family cifar``. Files of a user's own (``--config-dir``) are
read, too.

Every ``kd-lightning`` command imports this file, so it imports nothing heavy.
"""

from typing import Any, Optional

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

Names = list[str]
Results = list[ConfigResult]


class RecipeSource(ConfigSource):
    """Recipes, by name or by the choices that select them."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.seen: dict[str, list[ConfigResult]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecipeSource":
        """Hydra copies its sources whenever it lists a group; what was read is the same for all copies."""
        return self

    @staticmethod
    def scheme() -> str:
        """Name of the source in Hydra's search path."""
        return "kd-recipes"

    def available(self) -> bool:
        """Always true: the source has no folder."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Always false: the folder ``recipe/`` exists without this source."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Whether there is a recipe for these choices; a recipe given by name is looked up when it is loaded."""
        group, _, name = config_path.partition("/")
        if group != "recipe" or not name or not GlobalHydra.instance().is_initialized():
            return False
        return self._chosen(*name.split("+")) is not None if "+" in name else not self._files(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """The recipe as a file would define it; for choices, a file with the recipe as its only default."""
        name = config_path.removeprefix("recipe/")
        method, _, section = name.rpartition("/")
        sections = self._sections(f"recipe/{method}") if method else {"none": {}}
        if "+" in name:
            node = {"defaults": [f"/{self._chosen(*name.split('+'))}"]}
        elif section in sections:
            node = sections[section]
        else:
            there = f"; there are {', '.join(f'{method}/{known}' for known in sections)}" if method and sections else ""
            raise ConfigLoadError(f"there is no recipe {name}{there}")
        config = OmegaConf.create(node)
        header = {"package": "_global_"}
        return ConfigResult(config=config, path=self.full_path(), provider=self.provider, header=header)

    def list(self, config_path: str, results_filter: Optional[ObjectType]) -> list[str]:  # noqa: UP045
        """Empty: recipes are chosen by the other groups."""
        return []

    def _chosen(self, method: str, data: str, scale: str, teacher: str) -> str | None:
        """Path of the first recipe that exists for these choices; None if there is none."""
        wanted = []
        for name in self._with_families(f"data/{data}"):
            wanted += [f"{name}_{teacher.replace('/', '_')}_{scale}", f"{name}_{scale}"]
        for own in self._with_families(f"method/{method}"):
            sections = self._sections(f"recipe/{own}")
            for name in [*wanted, scale]:
                if name in sections or self._files(f"recipe/{own}/{name}"):
                    return f"recipe/{own}/{name}"
        return None

    def _with_families(self, config_path: str) -> Names:
        """The member's name, its family's, and so on."""
        group, _, name = config_path.partition("/")
        names: Names = []
        while name and name not in names:
            names.append(name)
            stated = [config.header.get("family") for config in self._files(f"{group}/{name}")]
            name = next((family for family in stated if family), "")
        return names

    def _sections(self, config_path: str) -> dict[str, Any]:
        """The recipes in all files of that name; of two recipes of one name, the package's."""
        found: dict[str, Any] = {}
        for config in self._files(config_path):
            if isinstance(config.config, DictConfig):
                plain: Any = OmegaConf.to_container(config.config, resolve=False)
                found = plain | found
        return found

    def _files(self, config_path: str) -> Results:
        """All files of that name, read once per initialisation of Hydra."""
        if config_path not in self.seen:
            sources = GlobalHydra.instance().config_loader().get_sources()
            others = [source for source in sources if not isinstance(source, RecipeSource)]
            found = [source.load_config(config_path) for source in others if source.is_config(config_path)]
            self.seen[config_path] = found
        return self.seen[config_path]


class RecipesPlugin(SearchPathPlugin):
    """Adds the source to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append it, so that files come first."""
        search_path.append(provider="kd_lightning", path=f"{RecipeSource.scheme()}://")
