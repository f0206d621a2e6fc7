"""DeepInversion (NVlabs): ``get_images`` of the CIFAR-10 code on ResNet-18, without shifts."""

from __future__ import annotations

import importlib
import random
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from kd_lightning.methods.data_free.adaptive_deep_inversion import AdaptiveDeepInversion
from kd_lightning.networks.classifiers.resnet import ResNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.deep_inversion import DeepInversion
from references.observed import Trace, copied, importable, settled, traced
from references.sides import COLOUR, At, Ours, adam, method

WEIGHTS = {"bn": 10.0, "tv": 2.5e-5, "l2": 3e-8}


@dataclass
class Pixels:
    """Our source, which runs outside Lightning."""

    source: DeepInversion
    net: nn.Module
    batch: int

    def run(self, trace: Trace, limit: int, *, fast: bool, compiled: bool = False) -> None:
        """Invert one batch; ``fast``: channels last. Hooks see to it that nothing is compiled."""
        layout = torch.channels_last if fast else torch.contiguous_format
        self.net.to(memory_format=layout)  # type: ignore[call-overload]
        with traced(trace, limit):
            noise = torch.randn(self.batch, 3, 32, 32).to(memory_format=layout)
            self.source.invert(self.net, noise, torch.arange(self.batch) % 10, np.random.default_rng(0))


def inversion(at: At, *, compete: float) -> tuple[Trace, Ours | Pixels]:
    """Pixels against the batch-norm statistics; with a competitor, ours is the legacy form."""
    theirs, labels = Trace(), cycle(range(10))
    with importable(at.folder / "cifar10", "apex", "apex.parallel"), traced(theirs, at.limit):
        main = importlib.import_module("deepinversion_cifar10")
        teacher, student = settled(main.ResNet18()), settled(main.ResNet18())
        pixels = torch.zeros(at.batch, 3, 32, 32, requires_grad=True)
        scales = {"bn_reg_scale": 10.0, "var_scale": 2.5e-5, "l2_coeff": 3e-8, "competitive_scale": compete}
        with (
            patch.object(random, "randint", lambda low, _: next(labels) if low == 0 else 0),
            patch.object(main.vutils, "save_image"),
        ):
            main.get_images(
                teacher,
                bs=at.batch,
                epochs=at.limit + 1,
                net_student=student,
                optimizer=torch.optim.Adam([pixels], lr=0.05),
                inputs=pixels,
                random_labels=True,
                **scales,
            )
    nets = [copied(net, ResNet(depth=18, num_classes=10)) for net in (teacher, student)]
    if not compete:
        source = DeepInversion(images=1, batch_size=1, steps=at.limit, jitter=0, flip=False, **WEIGHTS)
        return theirs, Pixels(source, Normalized(nets[0], **COLOUR).eval().requires_grad_(False), at.batch)
    still: dict[str, Any] = {"jitter": 0, "flip": False, "image": (3, 32, 32), "inverted": at.batch, "optimizer": adam}
    still |= {"steps": at.limit, "kd_steps": at.limit, "per_batch": at.limit, "legacy_js": True, "compete": compete}
    still |= {"kd_batch_size": at.batch, "temperature": 3.0}
    return theirs, Ours(method(AdaptiveDeepInversion, *nets, COLOUR, **still, **WEIGHTS))
