"""The wheel works from another directory, with nothing of the checkout on the path."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = shutil.which(os.environ.get("UV", "uv"))

COMPOSE_ALL = """
from pathlib import Path
import sys

import hydra_plugins.kd_networks
import hydra_plugins.kd_recipes
import hydra_plugins.kd_slots
import kd_lightning
from kd_lightning.config import resolvers
from kd_lightning.config.overrides import loaded, members, read

target = Path(sys.argv[1]).resolve()
for module in (kd_lightning, hydra_plugins.kd_networks, hydra_plugins.kd_recipes, hydra_plugins.kd_slots):
    assert Path(module.__file__).resolve().is_relative_to(target), module.__file__
assert resolvers.conf_dir().resolve() == target / "kd_lightning" / "conf"
resolvers.register()
with loaded():
    rows = [f"{group}={name}" for group in ("problem", "experiment") for name in members(group)]
for overrides in [[], ["problem=mnist", "method=dafl"], *([row] for row in rows)]:
    composed = read(overrides)
    assert not composed.problems, composed.problems
    print(overrides, composed.cfg.method._target_)
"""


def done(command, **options):
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [UV, "build", "-q", "--wheel", "-o", folder] if UV else [sys.executable, "-m", "build", "-w", "-o", folder]
    done([*build, ROOT])
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip = [UV, "pip", "install", "-q", "--python", sys.executable] if UV else [sys.executable, "-m", "pip", "install"]
    done([*pip, "--no-deps", "--target", folder, wheel])
    return folder


def environment(installed):
    return {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}


def test_it_carries_the_configuration_and_the_launcher(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"kd_lightning/conf/{f.relative_to(ROOT / 'conf').as_posix()}" for f in (ROOT / "conf").rglob("*.yaml")}
    modules = {
        f.relative_to(ROOT).as_posix() for f in (ROOT / "kd_lightning").rglob("*.py") if "plugins" not in f.parts
    }
    assert conf | modules | {f"hydra_plugins/kd_{name}.py" for name in ("networks", "recipes", "slots")} <= names
    assert not any(name.startswith(("conf/", "tests/", "kd_lightning/plugins")) for name in names)


@pytest.mark.slow
def test_every_experiment_composes_from_another_directory(installed, tmp_path):
    shown = done([sys.executable, "-c", COMPOSE_ALL, installed], cwd=tmp_path, env=environment(installed))
    rows = [file for group in ("problem", "experiment") for file in (ROOT / "conf" / group).rglob("*.yaml")]
    assert len(shown.splitlines()) == 2 + len(rows)


def test_the_command_shows_a_composition_from_another_directory(installed, tmp_path):
    command = [sys.executable, "-m", "kd_lightning.cli.main", "--cfg", "job", "method=kd", "data=mnist"]
    shown = done(command, cwd=tmp_path, env=environment(installed))
    assert "_target_: kd_lightning.methods.real_data.distill.Distill" in shown
    assert not list(tmp_path.iterdir())
