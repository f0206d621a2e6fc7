"""A problem small enough for seconds: four patterns of 8x8 pixels under noise, and a network that knows them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.core.log_filters import quiet
from kd_lightning.core.tasks import Classification
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.module import Images
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.generators.generators import ConvGenerator
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.context import Context
from kd_lightning.sources.few_shot_queried import FewAsked
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.white_box import FrozenTeacher

T = TypeVar("T")
CLASSES = 4
STATISTICS = {"mean": [0.5], "std": [0.3]}
adam = partial(torch.optim.Adam, fused=True)
sgd = partial(torch.optim.SGD, momentum=0.9, fused=True)


def patterns(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) in [0, 1] and labels: stripes down, stripes across, a ring, a cross; shifted and noisy."""
    rng = torch.Generator().manual_seed(seed)
    clean = torch.zeros(CLASSES, 8, 8)
    clean[0, :, ::2] = 1
    clean[1, ::2] = 1
    clean[2, 1:7, 1:7] = 1
    clean[2, 3:5, 3:5] = 0
    clean[3].fill_diagonal_(1)
    clean[3] = clean[3].maximum(clean[3].flip(1))
    labels = torch.randint(CLASSES, (n,), generator=rng)
    images = torch.stack(
        [clean[k].roll(s, 0) for k, s in zip(labels, torch.randint(3, (n,), generator=rng).tolist(), strict=True)]
    )
    noisy = 0.15 + 0.7 * images + 0.25 * torch.randn(images.shape, generator=rng)
    return noisy.clamp(0, 1).unsqueeze(1), labels


def network(widths: tuple[int, ...], *, batch_norm: bool = False) -> Normalized:
    """A fresh classifier of the patterns."""
    return Normalized(SmallConvNet(num_classes=CLASSES, widths=widths, batch_norm=batch_norm), **STATISTICS)


def trained_teacher(*, batch_norm: bool = False, seed: int = 0) -> Normalized:
    """A teacher that names nearly all of them rightly."""
    torch.manual_seed(seed)
    net = network((16, 32), batch_norm=batch_norm)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    images, labels = patterns(1024, seed=1)
    for _ in range(12):
        for pick in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(net(images[pick]), labels[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.zero_grad()
    return net.eval().requires_grad_(False)


def generator(**settings: Any) -> ConvGenerator:
    """A small generator of 8x8 images."""
    return ConvGenerator(**{"latent": 16, "channels": 1, "size": 8, "ngf": 8, "eps": 1e-5, **STATISTICS, **settings})


def trainer(epochs: int, **settings: Any) -> L.Trainer:
    """A silent trainer on the CPU."""
    quiet()
    bare = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, num_sanity_val_steps=0, **bare, **settings
    )


def fit(
    make: Any, teacher: nn.Module, loader: Any, *, epochs: int = 1, seed: int = 0, batch_norm: bool = False
) -> Distiller:
    """Train a student by the method that ``make(student=, teacher=, task=)`` returns."""
    torch.manual_seed(seed)
    student = network((8, 16), batch_norm=batch_norm)
    method = make(student=student, teacher=FrozenTeacher(teacher), task=Classification(CLASSES))
    method.train()
    trainer(epochs).fit(method, Images(loader, None))
    return method


def few_shot_context(teacher: nn.Module) -> Context:
    """For a source that asks about real images: there are 256."""
    images, labels = patterns(256, seed=3)
    data = Dataset("toy", list("abcd"), Split((images * 255).byte(), labels), None, None, "none", "none")
    return context(teacher, dataset=data, needs={"teacher", "source.images"})


def few(**settings: Any) -> FewAsked:
    """Sixteen of them, and what is made of those."""
    return FewAsked(per_class=4, batch_size=64, **settings)


def context(teacher: Any = None, **changes: Any) -> Context:
    """What a source prepares itself with: no images, a teacher if it asks one, and an empty store."""
    nothing = Dataset("toy", list("abcd"), None, None, None, "none", "none", shape=(1, 8, 8))
    settings = {"dataset": nothing, "teacher": FrozenTeacher(teacher) if isinstance(teacher, nn.Module) else teacher}
    settings |= {"store": Store(tempfile.mkdtemp()), "keys": {"data": "toy", "teacher": "toy"}, **STATISTICS}
    return Context(**settings | changes)


def lucky(starts: Iterable[int], run: Callable[[int], T], succeeds: Callable[[T], bool]) -> T:
    """What came of the first of several starts that succeeds, or of the last.

    A short adversarial training is a gamble that rounding decides: one in two or three may be lost on any processor,
    all of them only where there is a fault.

    Args:
        starts: seeds of the first weights.
        run: a seed to what is judged.
        succeeds: the judgement.
    """
    for start in starts:
        found = run(start)
        if succeeds(found):
            break
    return found


@torch.no_grad()
def agreement(student: nn.Module, teacher: nn.Module) -> float:
    """Fraction of unseen patterns that both put in the same class."""
    images, _ = patterns(512, seed=2)
    return float((student.eval()(images).argmax(1) == teacher(images).argmax(1)).float().mean())
