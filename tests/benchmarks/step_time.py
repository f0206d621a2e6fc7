"""How much a step costs here beside a bare PyTorch loop of the same mathematics, as ratios of one run.

    python tests/benchmarks/step_time.py [--steps 40] [--rounds 5]

Same networks, batch 256, precision, memory format, fused optimisers and data on both sides. The bare loop logs
nothing; ours runs under Lightning with the default logging, progress bar and generator watch. A round times one
side, then the other; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from kd_lightning.core.feature_hooks import capture
from kd_lightning.core.log_filters import quiet
from kd_lightning.core.tasks import Classification
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.distributed.device import fast_precision
from kd_lightning.engine.callbacks import WatchGenerator
from kd_lightning.engine.fit import Resumable
from kd_lightning.engine.progress_bar import PhaseBar
from kd_lightning.losses.image_prior import activation, information_entropy, one_hot
from kd_lightning.losses.response import kl
from kd_lightning.methods.data_free.dafl import Dafl
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.networks import head_of
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.generators.generators import ConvGenerator
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.data_free import Rounds
from kd_lightning.teachers.white_box import FrozenTeacher
from kd_lightning.tracking.curves import Curves, KeepCurves

BATCH, LATENT = 256, 100
STATISTICS: dict[str, Any] = {"mean": [0.1307], "std": [0.3081]}
adam = partial(torch.optim.Adam, lr=1e-3, fused=True)


def networks() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Teacher, student and generator at MNIST size, from the same seed each time."""
    torch.manual_seed(0)
    teacher = Normalized(LeNet5(), **STATISTICS).eval().requires_grad_(False)
    student = Normalized(LeNet5(widths=(3, 8, 60, 42)), **STATISTICS)
    generator = ConvGenerator(latent=LATENT, channels=1, size=32, ngf=16, fast=False, **STATISTICS)
    return tuple(net.to(memory_format=torch.channels_last) for net in (teacher, student, generator))  # type: ignore[return-value]


def images(steps: int) -> TensorLoader:
    """Random uint8 images, as many as ``steps`` batches take."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (BATCH * steps, 1, 32, 32), dtype=torch.uint8, generator=rng)
    return TensorLoader(pixels, torch.randint(10, (BATCH * steps,), generator=rng), batch_size=BATCH, shuffle=True)


def autocast(precision: str) -> torch.autocast:
    """What Lightning's precision plugin enters around a step."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


class Timer(Callback):
    """Seconds of a clock from the first batch to the last, warm-up excluded."""

    def __init__(self, warm: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.warm, self.clock = warm, clock

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Start after the warm-up, stop at every batch since."""
        if trainer.fit_loop.epoch_loop.batch_idx == self.warm - 1:
            self.start = self.clock()
        self.end = self.clock()


def bare(step: Callable[[Any], None], batches: Any, warm: int) -> float:
    """Seconds of the steps after the warm-up, in a plain loop."""
    start = 0.0
    for i, batch in enumerate(batches):
        step(batch)
        if i == warm - 1:
            start = time.perf_counter()
    return time.perf_counter() - start


def ours(
    method: L.LightningModule,
    batches: Any,
    precision: str,
    warm: int,
    *,
    val: TensorLoader | None = None,
    epochs: int = 1,
    synthetic: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of the same steps under Lightning with everything a run has."""
    timer = Timer(warm, clock)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        curves, watch = Curves(work), WatchGenerator(work, synthetic=synthetic)
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            precision=precision,  # type: ignore[arg-type]
            num_sanity_val_steps=0,
            log_every_n_steps=1_000_000,
            enable_model_summary=False,
            default_root_dir=work,
            logger=[curves],
            callbacks=[timer, PhaseBar("bench"), watch, KeepCurves(curves), Resumable(work / "last")],
        )
        trainer.fit(method, Images(batches, val))
    return timer.end - timer.start


def kd(steps: int, precision: str, warm: int) -> tuple[float, float]:
    """Seconds of bare and of our steps of Hinton's distillation."""
    teacher, student, _ = networks()
    optimizer = adam(student.parameters())

    def step(batch: Any) -> None:
        with autocast(precision):
            s = student(batch.x)
            with torch.no_grad():
                t = teacher(batch.x)
            loss = 0.1 * nn.functional.cross_entropy(s.float(), batch.y) + 0.9 * kl(s, t, temperature=4.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    plain = bare(step, images(steps), warm)
    teacher, student, _ = networks()
    terms = {"response": {"weight": 0.9, "loss": partial(kl, temperature=4.0)}}
    method = Distill(
        student=student, teacher=FrozenTeacher(teacher), task=Classification(10), optimizer=adam, label=0.1, terms=terms
    )
    return plain, ours(method, images(steps), precision, warm)


def dafl(steps: int, precision: str, warm: int) -> tuple[float, float]:
    """Seconds of bare and of our joint steps of DAFL."""
    teacher, student, generator = networks()
    opt_s, opt_g = adam(student.parameters()), adam(generator.parameters())
    rng, head = torch.Generator().manual_seed(0), head_of(teacher)

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        with capture(teacher, inputs=(head,)) as taps:
            t = teacher(x)
        return taps[head], t

    def step(_: Any) -> None:
        with autocast(precision):
            x = generator(torch.randn(BATCH, LATENT, generator=rng))
            features, t = judge(x)
            loss_g = one_hot(t) + 0.1 * activation(features) + 5.0 * information_entropy(t)
        opt_g.zero_grad()
        loss_g.backward()
        opt_g.step()
        with autocast(precision):
            loss_s = kl(student(x.detach()), t.detach())
        opt_s.zero_grad()
        loss_s.backward()
        opt_s.step()

    plain = bare(step, range(steps), warm)
    teacher, student, generator = networks()
    method = Dafl(
        student=student,
        teacher=FrozenTeacher(teacher),
        task=Classification(10),
        generator=generator,
        optimizer=adam,
        optimizer_g=adam,
        latent=LATENT,
        batch_size=BATCH,
    )
    return plain, ours(method, Rounds(steps), precision, warm)


def main() -> None:
    """Print one line per method and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    quiet()
    warm = max(1, args.steps // 4)
    for name, measure in {"kd": kd, "dafl": dafl}.items():
        for precision in dict.fromkeys(("32-true", fast_precision("cpu"))):
            measure(warm + 2, precision, warm)
            pairs = [measure(args.steps, precision, warm) for _ in range(args.rounds)]
            plain, our = (statistics.median(side) / (args.steps - warm) * 1e3 for side in zip(*pairs, strict=True))
            print(
                f"{name:5} {precision:11} bare {plain:7.2f} ms, ours {our:7.2f} ms, ratio {our / plain:.3f}", flush=True
            )


if __name__ == "__main__":
    main()
