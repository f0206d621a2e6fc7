"""Milliseconds of a round of every method at the size of its paper, plain and with the settings for speed: one table.

    python tests/benchmarks/gpu.py [--seconds 8] [--methods dafl,zskt] [--problem cifar10_wrn] [--scale small]

For a machine with a GPU, where it takes about ten minutes. Networks have random weights and data sets random images:
nothing is read or downloaded, and no accuracy is told. Each cell trains for so many seconds after the first rounds,
which compile and warm up; a faster setting is told as a share of the plain one of the same run. ``--problem
cifar10_tiny --scale small --device cpu`` shows on any machine that the cells run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback

from kd_lightning.config import resolvers
from kd_lightning.config.check import check
from kd_lightning.core.log_filters import quiet
from kd_lightning.core.tasks import Classification
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.engine.fit import RunContext, fit
from kd_lightning.errors import UserError
from kd_lightning.networks.normalized import Normalized
from kd_lightning.run.run import settle
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.white_box import FrozenTeacher
from kd_lightning.tracking.backends import Dashboards

WARM = 5
"""Rounds before the clock starts."""
BESIDE = ("controls=none", "teacher.check=false", "data.val=0")
METHODS = "supervised,kd,crd,reviewkd,dafl,dfad,zskt,dfq,cmi,fast_dfkd,nayer,disguide"
SETTINGS: dict[str, tuple[str, ...]] = {
    "plain": ("trainer.precision=32-true", "memory_format=contiguous"),
    "bf16, channels last": ("trainer.precision=bf16-mixed", "memory_format=channels_last"),
    "... compiled": ("trainer.precision=bf16-mixed", "memory_format=channels_last", "compile=inductor"),
}


class Clock(Callback):
    """Ends a fit after ``seconds`` and keeps the seconds of each round, the device's work included."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.marks = seconds, list[float]()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Wait for the device, and look at the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        if len(self.marks) > WARM + 2 and self.marks[-1] - self.marks[WARM] > self.seconds:
            raise _Enough

    def milliseconds(self) -> float:
        """Of a round, the median."""
        rounds = [b - a for a, b in zip(self.marks[WARM:], self.marks[WARM + 1 :], strict=False)]
        return 1000 * statistics.median(rounds)


class _Enough(Exception):
    """The cell has run long enough."""


def images(shape: tuple[int, int, int], classes: int, n: int = 2048) -> Dataset:
    """Random images and labels."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=rng)
    split = Split(pixels, torch.arange(n) % classes)
    return Dataset("random", [str(i) for i in range(classes)], split, None, None, "none", "raw")


def cell(overrides: list[str], seconds: float) -> tuple[float, float]:
    """Milliseconds of a round and GiB at the peak, of a composition.

    Raises:
        UserError: it cannot run here.
    """
    with initialize_config_dir(str(resolvers.conf_dir()), version_base="1.3"):
        made = settle(check(compose("run", overrides)))
    classes = made.data.num_classes
    dataset = images((3, 32, 32), classes)
    clock = Clock(seconds)
    teacher = None
    if made.teacher is not None and made.teacher.net is not None:
        net = Normalized(made.teacher.net.build(), mean=made.teacher.mean, std=made.teacher.std)
        teacher = FrozenTeacher(net.eval().to(made.device))
    if made.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        bench = RunContext(Store(root=folder), dataset, "random", Classification(classes), Dashboards(), [clock])
        with suppress(_Enough):
            fit(made, bench, phase="student", teacher=teacher, teacher_key="random")
    peak = torch.cuda.max_memory_allocated() / 2**30 if made.device != "cpu" else float("nan")
    return clock.milliseconds(), peak


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--problem", default="cifar10")
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    resolvers.register()
    quiet()
    print(f"{'method':<12} {'setting':<20} {'ms a round':>11} {'of plain':>9} {'GiB':>6}")
    for method in given.methods.split(","):
        plain = None
        for setting, words in SETTINGS.items():
            overrides = [
                f"problem={given.problem}",
                *BESIDE,
                *METHODS[method],
                f"method={method}",
                f"scale={given.scale}",
            ]
            overrides += [f"trainer.accelerator={given.device}", *words]
            try:
                took, peak = cell(overrides, given.seconds)
            except UserError as error:
                print(f"{method:<12} {setting:<20} {str(error).splitlines()[-1].strip()[:80]}", flush=True)
                continue
            plain = plain or took
            print(f"{method:<12} {setting:<20} {took:>11.1f} {took / plain:>9.2f} {peak:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
