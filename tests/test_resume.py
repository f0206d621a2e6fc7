"""Killed anywhere, the same command goes on and ends with the same bits."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DAFL, FORKS, PATIENCE, TINY, tiny_run, wait_until
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent / "methods"))
from cases import CASES, CROPPED, SCHEDULED

KILLED: dict[str, tuple[str, ...]] = {
    name: (f"method={name}", *case.tiny, *(("teacher.net.batch_norm=true",) if case.batch_norm else ()))
    for name, case in CASES.items()
    if case.tiny
}
KILLED["kd of numbers"] = (
    *("method=kd", "data=rotated_digits", "data.base=digits", "data.size=8", "data.train=640", "data.val=100"),
    *("teacher.net.batch_norm=true", SCHEDULED, CROPPED),
)


def run_until_killed(folder: Path, root: Path, overrides: tuple[str, ...], phase: str, where: str) -> None:
    """Run in this process, which ends at the first checkpoint or in the third round of a phase."""
    os.environ["KD_CHECKPOINT_SECONDS"] = "0"
    torch.set_num_threads(1)
    from kd_lightning.engine import fit as fitting
    from kd_lightning.methods.base.distiller import Distiller

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    save, record, train, running = fitting.Resumable._save, Distiller.record, fitting._train, []

    def saving(self: Any, trainer: Any) -> None:
        save(self, trainer)
        if running[-1] == phase and where == "checkpoint":
            die()

    def recording(self: Any, **terms: Any) -> None:
        record(self, **terms)
        if running[-1] == phase and where == f"round {self.rounds_done}":
            die()

    def training(cfg: Any, bench: Any, name: str, *rest: Any) -> Any:
        running.append(name)
        return train(cfg, bench, name, *rest)

    fitting.Resumable._save, Distiller.record, fitting._train = saving, recording, training
    tiny_run(folder, *overrides, root=root)


def in_a_child(*args: Any) -> int | None:
    child = FORKS.Process(target=run_until_killed, args=args)
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode


def left(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]], dict[str, Any]]:
    """Weights, curves without clock, and checkpoint of a run."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    for rows_and_seconds in checkpoint["callbacks"].values():
        rows_and_seconds.pop("rows", None)
        rows_and_seconds.pop("seconds", None)
    return load_file(folder / "student.safetensors"), rows, checkpoint


def assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{path}/{i}")
    else:
        assert a == b or (a != a and b != b), f"{path}: {a} {b}"


def assert_same_runs(one: Path, other: Path) -> None:
    for a, b in zip(left(one), left(other), strict=True):
        assert_same(a, b)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for result in results:
        del result["cost"]["seconds"], result["cost"]["peak_memory_bytes"]
        result.pop("device")
    assert_same(*results)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_after_every_checkpoint(name: str, tmp_path: Path, teacher_file: Path) -> None:
    overrides = KILLED[name]
    if "teacher.net.batch_norm=true" not in overrides:  # theirs has batch norm
        overrides += (f"teacher.weights={teacher_file}",)
    whole = tiny_run(tmp_path / "whole", *overrides, root=tmp_path / "a")
    kills = 0
    while in_a_child(tmp_path / "cut", tmp_path / "b", overrides, "student", "checkpoint") != 0:
        kills += 1
        assert kills < 30, "does not get on"
    assert kills == rounds(whole.folder)
    assert_same_runs(whole.folder, tmp_path / "cut")


def rounds(folder: Path) -> int:
    """There is a checkpoint after each: at the end of the round, of its epoch, or of the fit."""
    batches = torch.load(folder / "last.ckpt", weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return batches["total"]["completed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "phase"), [("dafl", "teacher"), ("dafl", "student"), ("dafl", "noise"), ("fs_bbt", "cvae")]
)
def test_killed_in_a_round_of(method: str, phase: str, tmp_path: Path) -> None:
    overrides = (f"method={method}", "controls=digits", "data.recipe.epochs=3")
    whole = tiny_run(tmp_path / "whole", *overrides, root=tmp_path / "a")
    assert in_a_child(tmp_path / "cut", tmp_path / "b", overrides, phase, "round 4") == -signal.SIGKILL
    assert not (tmp_path / "cut/result.json").exists()
    again = tiny_run(tmp_path / "cut", *overrides, root=tmp_path / "b")
    assert not again["stored"]
    assert again["metrics"] == whole["metrics"]
    assert_same_runs(whole.folder, tmp_path / "cut")


STAGES = (
    *("method=supervised", "teacher=none", "stages=biggan", "trainer.max_epochs=1"),
    "features.student.trunk._target_=kd_lightning.networks.label_embedding.ConvTrunk",
    *("+features.student.trunk.size=8", "+features.student.trunk.widths=[4,8]"),
    *("features.student.features=8", "features.student.hidden=[8]"),
    *("features.trainer.max_epochs=1", "features.source.batch_size=320"),
    *("gan.trainer.max_epochs=2", "gan.source.batch_size=400", "gan.method.ema=0.9", "gan.method.ema_from=1"),
    *("gan.method.latent=4", "gan.method.generator.widths=8", "gan.method.discriminator.widths=8"),
    *("gan.method.discriminator.final=4", "+gan.method.show_every=3"),
    *("ratio.trainer.max_epochs=2", "ratio.source.batch_size=400", "ratio.method.ratio.widths=[16,16]"),
)
MECHANISMS = (
    *("method=supervised", "teacher=none", "stages=skdcgn", "trainer.max_epochs=1", "student=digits_cnn"),
    *("data=double_colored_mnist", "data.base=digits", "data.train=120", "data.val=30", "data.test=30"),
    *("cgn.trainer.max_epochs=2", "cgn.source.batch_size=60", "cgn.method.ema=0.9", "cgn.method.ema_from=1"),
    *("cgn.method.generator.ngf=4", "cgn.method.discriminator.ndf=8", "cgn.method.perc=[]"),
    *(f"{im}.{key}" for im in ("shape", "fg", "bg") for key in ("source.pairs=60", "source.batch_size=30")),
    *("shape.trainer.max_epochs=2", "shape.method.n_critic=2", "fg.trainer.max_epochs=1", "bg.trainer.max_epochs=1"),
)
EVOLUTION = (
    *("method=ce_gan", "teacher=none", "metrics=none", "source.batch_size=400", "method.population=2"),
    *("method.eval_size=40", "method.latent=4", "method.generator.widths=[8]", "method.discriminator.widths=[8]"),
    *("method.fitness=quality_diversity", "method.child_adam=inherit", "trainer.max_epochs=3"),
)
STAGE_OF = {
    "gan": (STAGES, "generator"),
    "ratio": (STAGES, "ratio"),
    "cgn": (MECHANISMS, "generator"),
    "shape": (MECHANISMS, "generator"),
    "student": (EVOLUTION, "generator"),
}


def stage_left(store: Path, phase: str, net: str) -> list[Any]:
    """What the fit of a stage kept: its network, its report without clocks, its curves."""
    (folder,) = [f.parent for f in store.glob("fit-*/fit.json") if json.loads(f.read_text())["phase"] == phase]
    report = json.loads((folder / "fit.json").read_text())
    del report["fit_seconds"]
    return [load_file(folder / f"{net}.safetensors"), report, *left(folder)[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("phase", STAGE_OF)
def test_a_stage_killed_after_every_checkpoint(phase: str, tmp_path: Path) -> None:
    overrides, net = STAGE_OF[phase]
    tiny_run(tmp_path / "whole", *overrides, root=tmp_path / "a")
    kills = 0
    while in_a_child(tmp_path / "cut", tmp_path / "b", overrides, phase, "checkpoint") != 0:
        kills += 1
        assert kills < 30, "does not get on"
    assert kills >= 4
    assert_same(*(stage_left(tmp_path / root, phase, net) for root in ("a", "b")))


def evolve_until_killed(folder: Path, root: Path, name: str, calls: int) -> None:
    """Evolve generators in this process, which ends in a phase of a generation."""
    os.environ["KD_CHECKPOINT_SECONDS"] = "0"
    torch.set_num_threads(1)
    from kd_lightning.methods.generators.ce_gan import CeGan

    done, phase = iter(range(calls)), getattr(CeGan, name)

    def dying(self: Any, *args: Any) -> Any:
        if next(done, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return phase(self, *args)

    setattr(CeGan, name, dying)
    tiny_run(folder, *EVOLUTION, root=root)


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a whole evolution."""
    root = tmp_path_factory.mktemp("evolved")
    tiny_run(root / "run", *EVOLUTION, root=root / "store")
    return root / "store"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "calls"), [("mutant", 20), ("judged", 25), ("child", 3), ("replayed", 3), ("verdicts", 10), ("keep", 4)]
)
def test_an_evolution_killed_in_a_phase_of_a_generation(phase: str, calls: int, evolved: Path, tmp_path: Path) -> None:
    """In its fourth or fifth of six; every generation has six mutants, a child, and three steps against them."""
    child = FORKS.Process(target=evolve_until_killed, args=(tmp_path / "cut", tmp_path / "b", phase, calls))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (checkpoint,) = (tmp_path / "b").glob("fit-*.unfinished/last.ckpt")
    (rank,) = torch.load(checkpoint, weights_only=True)["rng"]
    assert len(rank["own"]["population"]) == 2
    tiny_run(tmp_path / "cut", *EVOLUTION, root=tmp_path / "b")
    assert_same(*(stage_left(store, "student", "generator") for store in (evolved, tmp_path / "b")))


@pytest.mark.slow
def test_interrupted_at_the_keyboard(tmp_path: Path) -> None:
    overrides = [
        "method=dafl",
        *TINY,
        *DAFL,
        "trainer.max_epochs=200",
        "source.rounds=100",
        "hydra.run.dir=" + str(tmp_path / "run"),
    ]
    environment = os.environ | {"KD_CHECKPOINT_SECONDS": "10000", "KD_ARTIFACTS": str(tmp_path / "store")}
    command = [sys.executable, "-m", "kd_lightning.cli.main", *overrides]
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    store = tmp_path / "store"
    wait_until(lambda: list(store.glob("fit-*.unfinished/samples/*.png")), run)
    assert not list(store.glob("fit-*.unfinished/last.ckpt"))
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, said
    assert said.splitlines()[-1] == "stopped; the same command goes on from the last checkpoint"
    assert "Traceback" not in said
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "stopped"
    assert "same command" in result["reason"]
    (checkpoint,) = (tmp_path / "store").glob("fit-*.unfinished/last.ckpt")
    reached = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert 0 < reached["ready"] < 20000
