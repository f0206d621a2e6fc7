"""A store of its own for every test, one thread, and a run so small that it takes part of a second."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kd_lightning.config import resolvers
from kd_lightning.config.check import check
from kd_lightning.config.composition import Composition

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

FORKS = multiprocessing.get_context("forkserver")
"""Processes that have imported what a run takes before they begin."""
FORKS.set_forkserver_preload(
    [
        "kd_lightning.run.run",
        "kd_lightning.methods.data_free.dafl",
        "kd_lightning.data.datasets.digits",
        "hydra",
        "pytest",
    ]
)

PATIENCE = 600
"""Seconds after which a test no longer waits for what should have happened: only a fault takes as long."""


def wait_until(happened: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for an event that a process brings about, which must not end before."""
    give_up = time.monotonic() + PATIENCE
    while not happened():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> Iterator[None]:
    """What is started in the background ignores Ctrl-C, and so would all that the tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


TINY = (
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "data.recipe.epochs=2",
    "data.recipe.batch_size=320",
    "controls=none",
    "teacher.check=false",
)
DAFL = ("source.rounds=4", "method.batch_size=16", "method.latent=8", "method.generator.ngf=4")


def composed(*overrides: str) -> DictConfig:
    """The composition of overrides, as the command line would make it."""
    resolvers.register()
    with initialize_config_dir(str(resolvers.conf_dir()), version_base="1.3"):
        return compose("run", list(overrides))


def composition(*overrides: str, names: Mapping[str, str | None] | None = None) -> Composition:
    """The same, checked and as a run gets it."""
    return check(composed(*overrides), names)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's artefacts go."""
    monkeypatch.setenv("KD_ARTIFACTS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a teacher that knows the digits well."""
    return tiny_run(
        tmp_path_factory.mktemp("teacher"),
        *("method=supervised", "teacher=none", "student=small_conv", "data.recipe.batch_size=32"),
        *("trainer.max_epochs=8", "data.recipe.epochs=8"),
        root=tmp_path_factory.mktemp("teacher_store"),
    ).folder.joinpath("student.safetensors")


class Outcome(dict[str, Any]):
    """The result of a run, and its folder."""

    folder: Path


def tiny_run(folder: Path, *overrides: str, root: Path | None = None) -> Outcome:
    """One run in this process; ``method=dafl`` unless the overrides name another."""
    from kd_lightning.core.log_filters import quiet
    from kd_lightning.run.run import run

    quiet()
    names = {"data": "digits", "method": "dafl"} | dict(o.split("=", 1) for o in overrides if "." not in o)
    folder.mkdir(parents=True, exist_ok=True)
    rest = [o for o in overrides if not o.startswith("method=")]
    own = DAFL if names["method"] in ("dafl", "dfad") else ()
    at = [f"artifacts.root={root}"] if root else []
    whole = composition(*TINY, f"method={names['method']}", *own, *rest, *at, names=names)
    result = Outcome(run(whole, folder))
    result.folder = folder
    return result


@pytest.fixture
def tiny(tmp_path: Path, store: Path) -> Callable[..., Outcome]:
    """Runs a tiny composition in a fresh folder."""
    count = iter(range(1000))
    return lambda *overrides: tiny_run(tmp_path / f"run{next(count)}", *overrides)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a tiny run leaves, Hydra's files included; read it, or copy it and spoil the copy."""
    folder, root = tmp_path_factory.mktemp("finished") / "run", tmp_path_factory.mktemp("finished_store")
    overrides = ["method=dafl", "seed=0"]
    tiny_run(folder, *overrides, root=root)
    choices = {"hydra": {"runtime": {"choices": {"method": "dafl", "data": "digits"}}}}
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create(choices), folder / ".hydra" / "hydra.yaml")
    return folder
