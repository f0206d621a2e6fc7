"""The authors' own code beside ours: same weights, latents and batch, on one thread, in full precision.

    python tests/benchmarks/against_references.py --references DIR [--steps 4] [--rounds 3] [--batch 32] [NAME ...]

DIR holds checkouts, which nothing here fetches: DAFL (huawei-noah/DAFL), RDSKD (PengchaoHan/RDSKD), DFAD
(VainF/Data-Free-Adversarial-Distillation), ZSKT (polo5/ZeroShotKnowledgeTransfer), DeepInversion
(NVlabs/DeepInversion), DataFree (zju-vipa/DataFree). Scripts are executed as they are, until enough backward passes
were seen; CUDA, data sets and loggers that they ask for are stood in for. Printed are the largest difference of the
losses (relative where they exceed 1) in the first step and over all steps, where rounding grows with the learning
rate, and the ratio of the median step times, ours (under Lightning with everything a run has) over theirs.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from observed import Logits, Trace, copied, importable, script, traced
from step_time import ours as under_lightning
from torch import nn

from kd_lightning.data.sources.deep_inversion import DeepInversion
from kd_lightning.data.sources.free import Rounds
from kd_lightning.methods.adaptive_deep_inversion import AdaptiveDeepInversion
from kd_lightning.methods.dafl import Dafl
from kd_lightning.methods.dfad import Dfad
from kd_lightning.methods.dfq import Dfq
from kd_lightning.methods.rdskd import RdskdGenerator
from kd_lightning.methods.zskt import Zskt
from kd_lightning.networks.generators import Generator
from kd_lightning.networks.lenet import LeNet5
from kd_lightning.networks.normalized import Normalized
from kd_lightning.quiet import quiet
from kd_lightning.tasks import Classification
from kd_lightning.teacher.frozen import FrozenTeacher

GREY: dict[str, Any] = {"mean": [0.1307], "std": [0.3081]}
COLOUR: dict[str, Any] = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
adam, sgd = partial(torch.optim.Adam, fused=True), partial(torch.optim.SGD, momentum=0.9, fused=True)


def method(make: Callable[..., Any], teacher: nn.Module, student: nn.Module, **settings: Any) -> Any:
    """Our method with frozen teacher and student as it is."""
    task = Classification(10)
    made = make(student=student, teacher=FrozenTeacher(teacher), task=task, **settings)
    return made.train()


def run_ours(made: Any, trace: Trace, limit: int, rounds: int) -> None:
    """Fit as a run does, with the latents of ``trace``."""
    with traced(trace, limit):
        under_lightning(made, Rounds(rounds), "32-true", 1)


def lenet_script(folder: Path, name: str, at: Any, extra: list[str]) -> tuple[Trace, LeNet5, Generator, LeNet5]:
    """DAFL's and RDSKD's scripts share networks and options; ours with their weights come back."""
    theirs, teacher = Trace(), LeNet5()
    with importable(folder):
        his = copied(teacher, importlib.import_module("lenet").LeNet5())
        arguments = ["--batch_size", str(at.batch), *extra]
        generator, net = script(folder / name, arguments, theirs, at.steps, his)
    grey = Generator(latent=100, channels=1, size=32, **GREY)
    student = LeNet5(widths=(3, 8, 60, 42))
    return theirs, teacher, copied(generator, grey), copied(net, student) if net is not None else student


def dafl(folder: Path, at: Any) -> tuple[Trace, Trace, int, int]:
    """DAFL-train.py, as it is."""
    theirs, teacher, generator, student = lenet_script(folder, "DAFL-train.py", at, [])
    opts = {"optimizer": partial(adam, lr=2e-3), "optimizer_g": partial(adam, lr=0.2), "variant": "code"}
    nets = (Normalized(teacher, **GREY), Normalized(student, **GREY))
    made = method(Dafl, *nets, generator=generator, batch_size=at.batch, **opts)
    run_ours(made, mine := Trace(theirs.drawn), 2 * at.steps, at.steps)
    return theirs, mine, 1, 2


def rdskd(folder: Path, at: Any) -> tuple[Trace, Trace, int, int]:
    """generator-train.py, as it is."""
    with tempfile.TemporaryDirectory() as out:
        theirs, teacher, generator, student = lenet_script(
            folder, "generator-train.py", at, ["--output_file", f"{out}/x.csv"]
        )
    nets = (Normalized(teacher, **GREY), Normalized(student, **GREY))
    made = method(RdskdGenerator, *nets, generator=generator, batch_size=at.batch, optimizer=partial(adam, lr=1e-3))
    run_ours(made, mine := Trace(theirs.drawn), at.steps, at.steps)
    return theirs, mine, 1, 1


def dfad(folder: Path, at: Any) -> tuple[Trace, Trace, int, int]:
    """``train`` of DFAD_mnist.py."""
    theirs, teacher, student = Trace(), LeNet5(), LeNet5(widths=(3, 8, 60, 42))
    with importable(folder, "dataloader", "torchvision.models.utils"):
        main = importlib.import_module("DFAD_mnist")
        lenet = main.network.lenet
        his = [copied(teacher, lenet.LeNet5()), copied(student, lenet.LeNet5Half())]
        generator = main.network.gan.GeneratorA(nz=100, ngf=64, nc=1, img_size=32)
        grey = copied(generator, Generator(latent=100, channels=1, size=32, eps=1e-5, **GREY))
        opts = (
            torch.optim.SGD(his[1].parameters(), lr=0.01, weight_decay=1e-4, momentum=0.9),
            torch.optim.Adam(generator.parameters(), lr=1e-3),
        )
        args = SimpleNamespace(epoch_itrs=at.steps, batch_size=at.batch, nz=100, verbose=False)
        with traced(theirs, 6 * at.steps):
            main.train(args, *his, generator, "cpu", opts, 0)
    nets = (Normalized(teacher, **GREY), Normalized(student, **GREY))
    opts_ = {"optimizer": partial(sgd, lr=0.01, weight_decay=1e-4), "optimizer_g": partial(adam, lr=1e-3)}
    run_ours(
        method(Dfad, *nets, generator=grey, batch_size=at.batch, **opts_),
        mine := Trace(theirs.drawn),
        6 * at.steps,
        at.steps,
    )
    return theirs, mine, 6, 6


def zskt(folder: Path, at: Any) -> tuple[Trace, Trace, int, int]:
    """``ZeroShotKTSolver.run``, WRN-16-2 to WRN-16-1 with attention transfer."""
    theirs, rate = Trace(), 10**9
    args = SimpleNamespace(
        AT_beta=250.0,
        KL_temperature=1.0,
        n_generator_iter=1,
        n_student_iter=10,
        total_n_pseudo_batches=rate,
        log_freq=rate,
        save_n_checkpoints=0,
        dataset="CIFAR10",
        batch_size=at.batch,
        z_dim=100,
        device="cpu",
    )
    with importable(folder, "tensorflow", "scipy.misc", "utils.logger"), traced(theirs, 11 * at.steps):
        main = importlib.import_module("solver")
        solver = main.ZeroShotKTSolver.__new__(main.ZeroShotKTSolver)
        solver.args, solver.n_repeat_batch, solver.n_pseudo_batches = args, 11, 0
        solver.teacher = main.WideResNet(depth=16, num_classes=10, widen_factor=2).eval()
        solver.student = main.WideResNet(depth=16, num_classes=10, widen_factor=1)
        solver.generator = main.LearnableLoader(args=args, n_repeat_batch=11)
        nets = [Normalized(Logits(net), **COLOUR) for net in (solver.teacher, solver.student)]
        colour = Generator(latent=100, channels=3, size=32, tail="bn", eps=1e-5, **COLOUR)
        copied(solver.generator.generator, colour)
        for name, lr in {"generator": 1e-3, "student": 2e-3}.items():
            opt = torch.optim.Adam(getattr(solver, name).parameters(), lr=lr)
            setattr(solver, f"optimizer_{name}", opt)
            setattr(solver, f"scheduler_{name}", torch.optim.lr_scheduler.CosineAnnealingLR(opt, rate))
        solver.run()
    opts = {"optimizer": partial(adam, lr=2e-3), "optimizer_g": partial(adam, lr=1e-3)}
    blocks = [f"net.net.block{i}" for i in (1, 2, 3)]
    made = method(Zskt, *nets, generator=colour, batch_size=at.batch, blocks=blocks, **opts)
    run_ours(made, mine := Trace(theirs.drawn), 11 * at.steps, at.steps)
    return theirs, mine, 11, 11


def inversion(folder: Path, at: Any, *, compete: float) -> tuple[Trace, Trace, int, int]:
    """``get_images`` of the CIFAR-10 code on ResNet-18, without shifts; with a competitor, ours is the legacy form."""
    theirs, labels = Trace(), cycle(range(10))
    weights = {"bn": 10.0, "tv": 2.5e-5, "l2": 3e-8}
    with importable(folder / "cifar10", "apex", "apex.parallel"), traced(theirs, at.steps):
        main = importlib.import_module("deepinversion_cifar10")
        teacher, student = main.ResNet18().eval(), main.ResNet18().eval()
        nets = [Normalized(Logits(net), **COLOUR) for net in (teacher, student)]
        pixels = torch.zeros(at.batch, 3, 32, 32, requires_grad=True)
        scales = {"bn_reg_scale": 10.0, "var_scale": 2.5e-5, "l2_coeff": 3e-8, "competitive_scale": compete}
        with (
            patch.object(random, "randint", lambda low, _: next(labels) if low == 0 else 0),
            patch.object(main.vutils, "save_image"),
        ):
            main.get_images(
                teacher,
                bs=at.batch,
                epochs=at.steps + 1,
                net_student=student,
                optimizer=torch.optim.Adam([pixels], lr=0.05),
                inputs=pixels,
                random_labels=True,
                **scales,
            )
    mine = Trace(theirs.drawn)
    if compete:
        still = {"jitter": 0, "flip": False, "image": (3, 32, 32), "inverted": at.batch, "optimizer": adam}
        cut = {"steps": at.steps, "kd_steps": at.steps, "per_batch": at.steps, "legacy_js": True, "compete": compete}
        made = method(AdaptiveDeepInversion, *nets, **still, **cut, **weights)
        run_ours(made, mine, at.steps, 1)
    else:
        source = DeepInversion(images=1, batch_size=1, steps=at.steps, jitter=0, flip=False, **weights)
        nets[0].requires_grad_(False)
        with traced(mine, at.steps):
            noise = torch.randn(at.batch, 3, 32, 32)
            source.invert(nets[0].eval(), noise, torch.arange(at.batch) % 10, np.random.default_rng(0))
    return theirs, mine, 1, 1


def dfq(folder: Path, at: Any) -> tuple[Trace, Trace, int, int]:
    """DataFree's synthesizer, criterion and networks, WRN-16-2 to WRN-16-1; the student's steps put together here."""
    theirs = Trace()
    with importable(folder, "termcolor", "kornia"), traced(theirs, 11 * at.steps):
        free = importlib.import_module("datafree")
        models = importlib.import_module("datafree.models.classifiers.wresnet")
        teacher, student = models.WideResNet(16, 10, 2).eval(), models.WideResNet(16, 10, 1)
        generator = importlib.import_module("datafree.models.generator").Generator(nz=100, ngf=64, img_size=32, nc=3)
        nets = [Normalized(Logits(net), **COLOUR) for net in (teacher, student)]
        sigmoid = Generator(latent=100, channels=3, size=32, tail="sigmoid", eps=1e-5, conv_bias=False)
        copied(generator, sigmoid)
        sizes = {"nz": 100, "img_size": (3, 32, 32), "synthesis_batch_size": at.batch, "sample_batch_size": at.batch}
        normalizer = free.utils.Normalizer(COLOUR["mean"], COLOUR["std"])
        weights = {"adv": 1, "bn": 1, "oh": 1, "balance": 20}
        maker = free.synthesis.GenerativeSynthesizer(
            teacher, student, generator, normalizer=normalizer, **weights, **sizes
        )
        criterion = free.criterions.KLDiv()
        opt = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(at.steps):
            maker.synthesize()
            student.train()
            for _ in range(10):
                x = maker.sample()
                with torch.no_grad():
                    t = teacher(x)
                opt.zero_grad()
                criterion(student(x), t).backward()
                opt.step()
    opts = {"optimizer": partial(sgd, lr=0.1, weight_decay=1e-4)}
    opts |= {"optimizer_g": partial(adam, lr=1e-3, betas=(0.5, 0.999))}
    made = method(Dfq, *nets, generator=sigmoid, batch_size=at.batch, **opts)
    run_ours(made, mine := Trace(theirs.drawn), 11 * at.steps, at.steps)
    return theirs, mine, 11, 11


SYSTEMS: dict[str, tuple[str, Callable[..., tuple[Trace, Trace, int, int]]]] = {
    "dafl": ("DAFL", dafl),
    "rdskd": ("RDSKD", rdskd),
    "dfad": ("DFAD", dfad),
    "zskt": ("ZSKT", zskt),
    "dfq": ("DataFree", dfq),
    "deep_inversion": ("DeepInversion", partial(inversion, compete=0.0)),
    "adaptive_deep_inversion": ("DeepInversion", partial(inversion, compete=10.0)),
}


def main() -> None:
    """Print one line per system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SYSTEMS))
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    for name in args.names or SYSTEMS:
        folder, measure = SYSTEMS[name]
        seconds: tuple[list[float], list[float]] = ([], [])
        gaps: list[float] = []
        for seed in range(args.rounds):
            torch.manual_seed(seed)
            *traces, passes, our_passes = measure(args.references.resolve() / folder, args)
            sides = [trace.steps(n) for trace, n in zip(traces, (passes, our_passes), strict=True)]
            for kept, (_, durations) in zip(seconds, sides, strict=True):
                kept += durations
            gaps = [
                max(abs(a - b) / max(1, abs(a)), g)
                for a, b, g in zip(sides[0][0], sides[1][0], gaps or [0.0] * args.steps, strict=True)
            ]
        theirs, ours = (statistics.median(side) * 1e3 for side in seconds)
        print(
            f"{name:24} loss differs by {gaps[0]:.1e} at first, {max(gaps):.1e} at most; "
            f"theirs {theirs:8.1f} ms, ours {ours:8.1f} ms, ratio {ours / theirs:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
