"""Fast-Datafree (zju-vipa): the inner loop of ``FastMetaSynthesizer``, and ``train`` of ``datafree_kd.py`` on its pool.

kornia's crops and flips are stood in for by ours, so that both sides see the same views.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from kd_lightning.data.augment import HorizontalFlip, RandomCrop, RandomResizedCrop
from kd_lightning.methods.data_free.fast_dfkd import FastDfkd
from kd_lightning.networks.classifiers.wide_resnet import WideResNet
from references.datafree import sigmoid
from references.observed import Trace, copied, empty, importable, settled, traced
from references.sides import COLOUR, MANY, At, Ours, adam, method, sgd

INNER = 10
SIZES = {"latent": 256, "steps": INNER, "warmup": 0}
PASS = 20
"""Batches in the pool when their script begins to distil."""
ABSENT = ("termcolor", "kornia", "kornia.geometry", "kornia.geometry.transform", "kornia.geometry.transform.affwarp")


class Views:
    """Crops and flips from noise of their own: the same ones in the same order after each ``again``."""

    def __init__(self) -> None:
        self.again()

    def again(self) -> None:
        """Begin anew."""
        self.rng = torch.Generator().manual_seed(0)

    def crop(self, x: Tensor) -> Tensor:
        """4 black pixels around the image."""
        return RandomCrop(4)(x, self.rng)

    def flip(self, x: Tensor) -> Tensor:
        """Left and right."""
        return HorizontalFlip()(x, self.rng)

    def part(self, x: Tensor) -> Tensor:
        """A part of the image, enlarged."""
        return RandomResizedCrop()(x, self.rng)


@contextlib.contextmanager
def equal_labels(views: Views) -> Iterator[None]:
    """Whoever draws one label for each image is given sorted ones, as theirs sorts them; views begin anew."""
    randint = torch.randint
    views.again()

    def drawing(*args: Any, **settings: Any) -> Tensor:
        shape = settings.get("size", args[1] if len(args) > 1 else ())
        return torch.arange(shape[0]) * 10 // shape[0] if len(shape) == 1 else randint(*args, **settings)

    with patch("torch.randint", drawing):
        yield


@contextlib.contextmanager
def checkout(at: At, views: Views, *absent: str) -> Iterator[Any]:
    """The package ``datafree``; what else it asks for and nobody reads here is ``absent``."""
    with importable(at.folder, *ABSENT, "torchvision.models.utils", *absent):
        stand_in: Any = sys.modules["kornia"].augmentation  # type: ignore[attr-defined]
        stand_in.RandomCrop, stand_in.RandomHorizontalFlip = (lambda **_: views.crop), (lambda: views.flip)
        stand_in.RandomResizedCrop = lambda **_: views.part
        yield importlib.import_module("datafree")


def networks(free: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    """WRN-40-2, WRN-16-1 and the generator of their script."""
    models = importlib.import_module("datafree.models.classifiers.wresnet")
    generator = importlib.import_module("datafree.models.generator").Generator(nz=256, ngf=64, img_size=32, nc=3)
    return settled(models.wrn_40_2(10)), models.wrn_16_1(10), generator


def synthesizer(free: Any, nets: tuple[nn.Module, nn.Module, nn.Module], at: At, **settings: Any) -> Any:
    """Theirs, with the settings of their script for wide ResNets."""
    script = {"lr_g": 2e-3, "lr_z": 0.01, "bn": 10, "oh": 0.4, "adv": 1.1, "bn_mmt": 0.9, "is_maml": 1, "warmup": 1}
    sizes = {"nz": 256, "num_classes": 10, "img_size": (3, 32, 32), "iterations": INNER}
    sizes |= {"synthesis_batch_size": at.batch, "sample_batch_size": at.batch}
    normalizer = free.utils.Normalizer(COLOUR["mean"], COLOUR["std"])
    return free.synthesis.FastMetaSynthesizer(*nets, normalizer=normalizer, **script, **sizes | settings)


def ours(
    make: Callable[..., Any],
    nets: tuple[nn.Module, nn.Module, nn.Module],
    at: At,
    *,
    inputs: int = 256,
    lr_g: float = 2e-3,
    **settings: Any,
) -> Any:
    """Our method with their weights and the same settings; the generator takes vectors of length ``inputs``."""
    return method(
        make,
        copied(nets[0], WideResNet(depth=40, widen=2, num_classes=10)),
        copied(nets[1], WideResNet(depth=16, widen=1, num_classes=10)),
        COLOUR,
        generator=copied(nets[2], sigmoid(inputs)),
        num_classes=10,
        batch_size=at.batch,
        kd_batch_size=at.batch,
        temperature=20.0,
        optimizer=partial(sgd, lr=0.2, weight_decay=1e-4),
        optimizer_g=partial(adam, lr=lr_g, betas=(0.5, 0.999)),
        **settings,
    )


def inner(at: At) -> tuple[Trace, Ours]:
    """Ten steps on the copied generator and the latents, and the next ten on the next batch."""
    theirs, views = Trace(), Views()
    with tempfile.TemporaryDirectory() as pool, checkout(at, views) as free:
        nets = networks(free)
        made = ours(
            FastDfkd,
            nets,
            at,
            **SIZES,
            kd_steps=0,
            per_batch=1,
            augment=[lambda x, _: views.crop(x), lambda x, _: views.flip(x)],
        )
        maker = synthesizer(free, nets, at, save_dir=pool)
        # nobody reads the pool here: its workers would take the processor from the steps that are timed
        with patch("datafree.synthesis.fast_meta.DataIter"), equal_labels(views), traced(theirs, at.limit):
            for _ in range(MANY):
                maker.synthesize()
    return theirs, Ours(made, around=partial(equal_labels, views))


class Distils(FastDfkd):
    """The student's steps alone, on a pool of ``images``; on the batches ``shown``, if there are any."""

    def __init__(self, *, images: Tensor, shown: list[Tensor], **settings: Any) -> None:
        super().__init__(**settings)
        self.pool.add(images)
        self.shown = iter(shown) if shown else None

    def synthesises(self, n: int) -> bool:
        """Never: the pool is full."""
        return False

    def draw(self, n: int) -> Tensor:
        """As any pool draws, or what is shown."""
        return super().draw(n) if self.shown is None else next(self.shown)


def memory(at: At) -> tuple[Trace, Ours]:
    """A step of the student on the pool: PNG files and a loader with workers, against a tensor in memory."""
    theirs, views, seen = Trace(), Views(), []
    with (
        tempfile.TemporaryDirectory() as pool,
        checkout(at, views) as free,
        patch("torchvision.datasets.CIFAR10", empty),
    ):
        registry, main = (importlib.import_module(name) for name in ("registry", "datafree_kd"))
        nets = networks(free)
        images = torch.rand(PASS * at.batch, 3, 32, 32)
        shown: list[Tensor] = []
        make = partial(Distils, images=images, shown=shown)
        made = ours(make, nets, at, **SIZES, augment=[RandomCrop(4), HorizontalFlip()])
        transform = registry.get_dataset(name="cifar10", data_root=pool)[1].transform
        maker = synthesizer(free, nets, at, save_dir=pool, transform=transform, iterations=1)
        maker.data_pool.add(images[at.batch :])
        with equal_labels(views):
            maker.synthesize()  # the last batch

        def sample() -> Tensor:
            seen.append(maker.sample())
            return seen[-1]

        args = SimpleNamespace(
            kd_steps=MANY, method="fast_meta", gpu=None, autocast=free.utils.dummy_ctx, fp16=False, print_freq=0
        )
        opt = torch.optim.SGD(nets[1].parameters(), 0.2, weight_decay=1e-4, momentum=0.9)
        with traced(theirs, at.limit):
            main.train(SimpleNamespace(sample=sample), nets[1::-1], free.criterions.KLDiv(T=20), opt, args)
    if at.checking:
        mean, std = (torch.tensor(COLOUR[name]).view(3, 1, 1) for name in ("mean", "std"))
        shown += [x * std + mean for x in seen]
    return theirs, Ours(made)
