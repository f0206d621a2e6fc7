"""DAFL (huawei-noah): ``DAFL-train.py`` as it is, on MNIST and on CIFAR-10."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from unittest.mock import patch

from kd_lightning.methods.data_free.dafl import Dafl
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.classifiers.resnet import ResNet
from kd_lightning.networks.generators.generators import ConvGenerator
from references.observed import Trace, copied, empty, importable, script, settled
from references.sides import COLOUR, GREY, At, Ours, adam, method, sgd


def mnist(at: At) -> tuple[Trace, Ours]:
    """LeNet-5 to its half."""
    theirs, folder = Trace(), of(at)
    with importable(folder), patch("torchvision.datasets.mnist.MNIST", empty):
        his = importlib.import_module("lenet").LeNet5()
        kept = script(folder / "DAFL-train.py", ["--batch_size", str(at.batch)], theirs, at.limit, {"teacher": his})
    made = method(
        Dafl,
        copied(his, LeNet5()),
        copied(kept["net"], LeNet5(widths=(3, 8, 60, 42))),
        GREY,
        generator=copied(kept["generator"], ConvGenerator(latent=100, channels=1, size=32, **GREY)),
        batch_size=at.batch,
        variant="code",
        optimizer=partial(adam, lr=2e-3),
        optimizer_g=partial(adam, lr=0.2),
    )
    return theirs, Ours(made)


def cifar10(at: At) -> tuple[Trace, Ours]:
    """ResNet-34 to ResNet-18, with the settings of their README."""
    theirs, folder = Trace(), of(at)
    arguments = ["--dataset", "cifar10", "--channels", "3", "--batch_size", str(at.batch), "--latent_dim", "1000"]
    arguments += ["--lr_G", "0.02", "--lr_S", "0.1", "--oh", "0.05", "--ie", "5", "--a", "0.01"]
    with importable(folder), patch("torchvision.datasets.CIFAR10", empty):
        his = settled(importlib.import_module("resnet").ResNet34())
        kept = script(folder / "DAFL-train.py", arguments, theirs, at.limit, {"teacher": his})
    made = method(
        Dafl,
        copied(his, ResNet(depth=34, num_classes=10)),
        copied(kept["net"], ResNet(depth=18, num_classes=10)),
        COLOUR,
        generator=copied(kept["generator"], ConvGenerator(latent=1000, channels=3, size=32, **COLOUR)),
        batch_size=at.batch,
        latent=1000,
        variant="code",
        oh=0.05,
        ie=5.0,
        act=0.01,
        optimizer=partial(sgd, lr=0.1, weight_decay=5e-4),
        optimizer_g=partial(adam, lr=0.02),
    )
    return theirs, Ours(made)


def of(at: At) -> Path:
    """Where the script lies: the repository holds other papers besides."""
    return next(at.folder.rglob("DAFL-train.py")).parent
