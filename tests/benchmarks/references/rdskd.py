"""RDSKD (PengchaoHan): ``generator-train.py`` and ``student-train.py`` as they are."""

from __future__ import annotations

import importlib
import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.data.dataset import Dataset
from kd_lightning.data.loader import TensorLoader
from kd_lightning.losses.response import kl
from kd_lightning.methods.data_free.rdskd import RdskdGenerator
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.generators.generators import ConvGenerator
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.context import Context
from kd_lightning.sources.frozen_generator import GeneratedLoader
from kd_lightning.store.artifacts import Store
from references.observed import Trace, copied, empty, importable, script
from references.sides import GREY, At, Ours, adam, method

TEST = 10_000
"""Images of MNIST's test set, which stand-ins of its size replace."""


def generator(at: At) -> tuple[Trace, Ours]:
    """The generator's phase."""
    theirs = Trace()
    with tempfile.TemporaryDirectory() as out, importable(at.folder), patch("torchvision.datasets.mnist.MNIST", empty):
        his = importlib.import_module("lenet").LeNet5()
        arguments = ["--batch_size", str(at.batch), "--output_file", f"{out}/x.csv"]
        kept = script(at.folder / "generator-train.py", arguments, theirs, at.limit, {"teacher": his})
    made = method(
        RdskdGenerator,
        copied(his, LeNet5()),
        LeNet5(widths=(3, 8, 60, 42)),
        GREY,
        generator=copied(kept["generator"], grey()),
        batch_size=at.batch,
        optimizer=partial(adam, lr=1e-3),
    )
    return theirs, Ours(made)


def student(at: At) -> tuple[Trace, Ours]:
    """The student's phase, evaluation included: theirs every 10 steps, ours after an epoch of 120."""
    theirs, digits = Trace(), np.random.default_rng(0).integers(256, size=(TEST, 28, 28), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as out, importable(at.folder):
        write_mnist(Path(out), digits)
        his = importlib.import_module("lenet").LeNet5()
        maker = importlib.import_module("generator").Generator()
        arguments = ["--batch_size", str(at.batch), "--output_file", f"{out}/x.csv", "--data_dir", out]
        saved = {"teacher": his, "generator": maker}
        kept = script(at.folder / "student-train.py", arguments, theirs, at.limit, saved)
    ours = copied(maker, grey()).eval().requires_grad_(False)
    made = method(
        Distill,
        copied(his, LeNet5()),
        copied(kept["student_net"], LeNet5(widths=(3, 8, 60, 42))),
        GREY,
        label=0.0,
        terms={"response": {"weight": 1.0, "loss": partial(kl, temperature=10.0)}},
        optimizer=partial(adam, lr=2e-3),
    )

    def batches(layout: torch.memory_format) -> GeneratedLoader:
        return GeneratedLoader(ours.to(memory_format=layout), 120, (at.batch, 100), nothing())

    return theirs, Ours(
        made, batches, evaluation(digits, Normalized(copied(his, LeNet5()).eval(), **GREY)), 1000, synthetic=True
    )


def grey() -> ConvGenerator:
    """Our generator of its shape."""
    return ConvGenerator(latent=100, channels=1, size=32, **GREY)


def write_mnist(root: Path, digits: np.ndarray) -> None:
    """Files as torchvision expects of MNIST, with these images (N, 28, 28) for a test set."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images, labels = (digits, np.arange(len(digits)) % 10) if part == "t10k" else (digits[:0], np.zeros(0))
        for name, values in {"images-idx3": images, "labels-idx1": labels.astype(np.uint8)}.items():
            header = np.array([0x0800 + values.ndim, *values.shape], dtype=">i4")
            (raw / f"{part}-{name}-ubyte").write_bytes(header.tobytes() + values.tobytes())


@torch.no_grad()
def evaluation(digits: np.ndarray, teacher: nn.Module) -> TensorLoader:
    """The same images as a run would keep them: resized once, with the teacher's answers."""
    small = torch.from_numpy(digits).unsqueeze(1).to(torch.get_default_dtype())
    x = F.interpolate(small, 32, mode="bilinear", antialias=True).round().to(torch.uint8)
    answers: list[Tensor] = [teacher(part.to(torch.get_default_dtype()) / 255) for part in x.split(500)]
    return TensorLoader(x, torch.arange(TEST) % 10, answers=torch.cat(answers), batch_size=500, shuffle=False)


def nothing() -> Context:
    """What a source knows that looks at no image."""
    data = Dataset("none", [str(i) for i in range(10)], None, None, None, "none", "none", shape=(1, 32, 32))
    return Context(data, None, Store(tempfile.mkdtemp()), {}, **GREY)
