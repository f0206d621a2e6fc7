"""The order of the package: what a method may load, and where the configuration's own types may be named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kd_lightning"
METHODS = sorted(
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in (PACKAGE / "methods").rglob("*.py")
    if file.name != "__init__.py"
)
NOT_FOR_METHODS = re.compile(
    r"kd_lightning\.(store|distributed\.(launch|gpu_slots|process_group)|teachers\.(remote|budget|black_box)|config|engine"
    r"|results|run|planning|cli)\b|(sqlite3|httpx|starlette|uvicorn|filelock|wandb|omegaconf|hydra)\b"
)
LOADED = """
import sys
from importlib import import_module

for name in sys.argv[1:]:
    import_module(name)
print(*sorted(sys.modules))
"""


def loaded(*modules: str) -> list[str]:
    """What a fresh interpreter has loaded after importing modules."""
    done = subprocess.run([sys.executable, "-c", LOADED, *modules], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_methods_reach_no_store_database_client_or_launcher() -> None:
    assert len(METHODS) > 30
    assert [name for name in loaded(*METHODS) if NOT_FOR_METHODS.match(name)] == []


@pytest.mark.slow
def test_a_method_loads_little() -> None:
    names = loaded("kd_lightning.methods.data_free.dafl")
    files = [PACKAGE.parent.joinpath(*name.split(".")) for name in names if re.match(r"kd_lightning(\.|$)", name)]
    sources = [file / "__init__.py" if file.is_dir() else file.with_suffix(".py") for file in files]
    assert sum(len(source.read_text().splitlines()) for source in sources) < 1000


@pytest.mark.parametrize("word", ["DictConfig", "OmegaConf", "to_container", "open_dict", "hydra._internal"])
def test_the_configuration_stays_where_it_is_read(word: str) -> None:
    # Hydra has no public way to apply an override below a reference
    places = ("config/references.py",) if word == "hydra._internal" else ("config/", "cli/", "plugins/")
    named = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if word in file.read_text()}
    assert {name for name in named if not name.startswith(places)} == set()


def test_base_classes_stay_small() -> None:
    for file in (PACKAGE / "methods" / "base").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 150, file.name


def test_the_top_of_the_package_holds_four_files_and_the_command() -> None:
    assert {file.stem for file in PACKAGE.glob("*.py")} == {"__init__", "__main__", "api", "errors", "inspection"}


def test_the_configuration_grows_by_at_most_three_files_a_method() -> None:
    conf = PACKAGE.parent / "conf"
    methods = len(list((conf / "method").glob("*.yaml")))
    tables = [*conf.glob("experiment/**/*.yaml"), *conf.glob("sweep/*.yaml")]  # rows of papers, a file each
    assert len(list(conf.rglob("*.yaml"))) - len(tables) <= 90 + 3 * methods


def test_no_class_has_two_places() -> None:
    places: dict[str, list[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        for name in re.findall(r"^class (\w+)", file.read_text(), re.MULTILINE):
            places.setdefault(name, []).append(str(file.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
