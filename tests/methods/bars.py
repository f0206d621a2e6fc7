"""Images whose label is a number: a bright bar through 8x8 pixels, and its angle as a place in [0, 1]."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from toy import STATISTICS, adam, context, trainer

from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.networks.label_embedding import ConvTrunk, ImageToLabel
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.context import Context

LABELS = 21
"""Different ones in the training set."""


class ProcessInfo:
    """A number in [0, 1]: outputs (N, 1), labels (N,)."""

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        return F.mse_loss(output.squeeze(1), label)

    def metrics(self) -> dict[str, Metric]:
        return {}

    def agreement(self) -> Metric:
        return MeanMetric()

    def normalise(self, label: Tensor) -> Tensor:
        return label


def drawn(places: Tensor, seed: int) -> Tensor:
    """Bars (N, 1, 8, 8) in [0, 1] at angles from -60 to 60 degrees, of varied width and place, a little noisy."""
    rng = torch.Generator().manual_seed(seed)
    angle = (places - 0.5) * math.radians(120)
    width, shift = 0.8 + 0.5 * torch.rand(len(places), generator=rng), torch.rand(len(places), generator=rng) - 0.5
    row, column = torch.meshgrid(torch.arange(8.0) - 3.5, torch.arange(8.0) - 3.5, indexing="ij")
    across = angle.cos()[:, None, None] * column + angle.sin()[:, None, None] * row - shift[:, None, None]
    bars = (1.5 - across.abs() / width[:, None, None]).clamp(0, 1)
    return (bars + 0.05 * torch.randn(bars.shape, generator=rng)).clamp(0, 1)[:, None]


def labelled(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) uint8 and labels (n,), few different ones."""
    places = torch.randint(LABELS, (n,), generator=torch.Generator().manual_seed(seed)) / (LABELS - 1)
    return (drawn(places, seed) * 255).round().byte(), places


def bars(n: int = 400, **changes: Any) -> Context:
    """A context whose training images are bars."""
    split = Split(*labelled(n, seed=1))
    return context(dataset=Dataset("bars", ["low", "high"], split, None, None, "none", "none"), **changes)


def reader() -> Normalized:
    """A fresh T1."""
    net = ImageToLabel(ConvTrunk(in_channels=1, size=8, widths=(16, 32)), embed=64, hidden=32)
    return Normalized(net, **STATISTICS)


def fitted(method: Distiller, loader: Any, *, epochs: int = 1, val: Any = None) -> Distiller:
    """Train in silence on the CPU."""
    method.train()
    trainer(epochs).fit(method, Images(loader, val))
    return method


def trained_reader() -> Normalized:
    """A T1 that reads the angle of a bar to about a fortieth of the range."""
    torch.manual_seed(0)
    images, labels = labelled(2000, seed=2)
    make = partial(Distill, optimizer=partial(adam, lr=5e-3), label=1.0, terms={})
    net = reader()
    loader = TensorLoader(images, labels, batch_size=64, shuffle=True)
    fitted(make(student=net, teacher=None, task=ProcessInfo()), loader, epochs=4)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def misread(net: nn.Module, images: Tensor, places: Tensor) -> float:
    """Mean absolute difference between labels and what a reader reads."""
    return float((net.eval()(images).squeeze(1) - places).abs().mean())
