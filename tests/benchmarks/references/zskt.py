"""ZSKT (polo5): ``ZeroShotKTSolver.run``."""

from __future__ import annotations

import importlib
from functools import partial
from types import SimpleNamespace

import torch

from kd_lightning.distributed.device import fast_precision
from kd_lightning.methods.data_free.zskt import Zskt
from kd_lightning.networks.classifiers.wide_resnet import WideResNet
from kd_lightning.networks.generators.generators import ConvGenerator
from references.observed import Trace, copied, importable, settled, traced
from references.sides import COLOUR, At, Ours, adam, method

RATE = 10**9
SETTINGS = {
    "AT_beta": 250.0,
    "KL_temperature": 1.0,
    "n_generator_iter": 1,
    "n_student_iter": 10,
    "total_n_pseudo_batches": RATE,
    "log_freq": RATE,
    "save_n_checkpoints": 0,
    "dataset": "CIFAR10",
    "z_dim": 100,
    "device": "cpu",
}


def zskt(at: At) -> tuple[Trace, Ours]:
    """WRN-40-2 to WRN-16-1 with attention transfer: one step of the generator, ten of the student."""
    theirs = Trace()
    with importable(at.folder, "tensorflow", "scipy.misc", "utils.logger"), traced(theirs, at.limit):
        main = importlib.import_module("solver")
        solver = main.ZeroShotKTSolver.__new__(main.ZeroShotKTSolver)
        solver.args = SimpleNamespace(**SETTINGS, batch_size=at.batch)
        solver.n_repeat_batch, solver.n_pseudo_batches = 11, 0
        solver.teacher = settled(main.WideResNet(depth=40, num_classes=10, widen_factor=2))
        solver.student = main.WideResNet(depth=16, num_classes=10, widen_factor=1)
        solver.generator = main.LearnableLoader(args=solver.args, n_repeat_batch=11)
        generator = ConvGenerator(latent=100, channels=3, size=32, tail="bn", eps=1e-5, **COLOUR)
        # Lightning clips no gradient of a fused optimiser in mixed precision
        fused = fast_precision("cpu") == "32-true"
        made = method(
            Zskt,
            copied(solver.teacher, WideResNet(depth=40, widen=2, num_classes=10)),
            copied(solver.student, WideResNet(depth=16, widen=1, num_classes=10)),
            COLOUR,
            generator=copied(solver.generator.generator, generator),
            batch_size=at.batch,
            blocks=[f"net.block{i}" for i in (1, 2, 3)],
            optimizer=partial(adam, lr=2e-3, fused=fused),
            optimizer_g=partial(adam, lr=1e-3, fused=fused),
        )
        for name, lr in {"generator": 1e-3, "student": 2e-3}.items():
            opt = torch.optim.Adam(getattr(solver, name).parameters(), lr=lr)
            setattr(solver, f"optimizer_{name}", opt)
            setattr(solver, f"scheduler_{name}", torch.optim.lr_scheduler.CosineAnnealingLR(opt, RATE))
        solver.run()
    return theirs, Ours(made)
