"""Every method at the size of the toy problem: one case each, of which the tests of all methods are made.

A new method is one factory and one entry of ``CASES``. Which teacher and which source it gets follows from its
``needs``: see ``Case.batch_norm``, ``Case.toy_rounds`` and ``served``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from toy import (
    CLASSES,
    adam,
    context,
    few,
    few_shot_context,
    fit,
    generator,
    network,
    patterns,
    sgd,
)

from kd_lightning.data.augment import RandomResizedCrop
from kd_lightning.data.dataset import Split
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.streams import StreamsLoader
from kd_lightning.losses.logits import dist
from kd_lightning.losses.response import kl
from kd_lightning.losses.soft_labels import answer_cross_entropy
from kd_lightning.methods.black_box.disguide import Disguide
from kd_lightning.methods.data_free.adaptive_deep_inversion import AdaptiveDeepInversion
from kd_lightning.methods.data_free.cmi import Cmi
from kd_lightning.methods.data_free.dafl import Dafl
from kd_lightning.methods.data_free.dfad import Dfad
from kd_lightning.methods.data_free.dfq import Dfq
from kd_lightning.methods.data_free.fast_dfkd import FastDfkd
from kd_lightning.methods.data_free.nayer import Nayer
from kd_lightning.methods.data_free.rdskd import RdskdGenerator
from kd_lightning.methods.data_free.zskt import Zskt
from kd_lightning.methods.domain_adaptation.dan import Dan
from kd_lightning.methods.domain_adaptation.uda_kd import UdaKd
from kd_lightning.methods.generators.biggan import BigGan
from kd_lightning.methods.generators.ccgan import CcGan
from kd_lightning.methods.generators.ce_gan import CeGan
from kd_lightning.methods.generators.cvae import Cvae
from kd_lightning.methods.real_data.bss import Bss
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.methods.real_data.dml import Dml
from kd_lightning.methods.semi_supervised.ugan import Ugan
from kd_lightning.networks.generators.cvae import MlpDecoder, MlpEncoder
from kd_lightning.networks.generators.pairs import MlpImages, MlpPairs
from kd_lightning.sources.active_mixup import ActiveMixup
from kd_lightning.sources.data_impressions import DataImpressions
from kd_lightning.sources.deep_inversion import DeepInversion
from kd_lightning.sources.frozen_generator import GeneratedLoader
from kd_lightning.sources.fs_bbt import MixupCvae
from kd_lightning.sources.real import few_places


def real_images(teacher: nn.Module) -> TensorLoader:
    images, labels = patterns(512, seed=3)
    return TensorLoader((images * 255).byte(), labels, batch_size=64, shuffle=True)


def two_domains(teacher: nn.Module) -> StreamsLoader:
    """The patterns with labels, and darker ones without."""
    (images, labels), (dark, _) = patterns(512, seed=3), patterns(512, seed=4)
    labelled = TensorLoader((images * 255).byte(), labels, batch_size=64, shuffle=True)
    return StreamsLoader(labelled, TensorLoader((dark * 180).byte(), batch_size=64, shuffle=True))


def noise_images(teacher: nn.Module) -> TensorLoader:
    noise = torch.rand(512, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorLoader((noise * 255).byte(), torch.zeros(512), batch_size=64, shuffle=True)


def flipped(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return -kl(student, teacher, temperature=4.0)


def distill(loss: Any = None, *, label: float = 0.0) -> Callable[..., Distill]:
    terms = {"response": {"weight": 0.9, "loss": loss}} if loss else {}
    return partial(Distill, optimizer=partial(adam, lr=5e-3), label=label, terms=terms)


def dml() -> Callable[..., Dml]:
    """With a peer of its own at every call."""
    return partial(Dml, peer=network((8, 16)), optimizer=partial(adam, lr=5e-3))


def mislabelled(teacher: nn.Module) -> TensorLoader:
    loader = real_images(teacher)
    assert loader.labels is not None
    loader.labels = loader.labels[torch.randperm(len(loader.labels), generator=torch.Generator().manual_seed(0))]
    return loader


def bss(*, lr: float = 5e-3, **settings: Any) -> Callable[..., Bss]:
    return partial(Bss, **{"optimizer": partial(adam, lr=lr), "n_adv": 16} | settings)


def uda_kd(**settings: Any) -> Callable[..., UdaKd]:
    both = {"optimizer": partial(adam, lr=5e-3), "optimizer_t": partial(adam, lr=1e-3), "teacher_init": "source"}
    return partial(UdaKd, **{**both, **settings})


def dafl(lr_g: float, **settings: Any) -> Callable[..., Dafl]:
    return partial(
        Dafl,
        **settings,
        generator=generator(eps=0.8),
        optimizer=partial(adam, lr=5e-3),
        optimizer_g=partial(adam, lr=lr_g),
        latent=16,
        batch_size=64,
    )


def dfad(lr_g: float) -> Callable[..., Dfad]:
    return partial(
        Dfad,
        generator=generator(),
        optimizer=partial(sgd, lr=0.05),
        optimizer_g=partial(adam, lr=lr_g),
        latent=16,
        batch_size=64,
    )


def zskt(lr_g: float) -> Callable[..., Zskt]:
    return partial(
        Zskt,
        generator=generator(tail="bn"),
        optimizer=partial(adam, lr=2e-3),
        optimizer_g=partial(adam, lr=lr_g),
        latent=16,
        batch_size=64,
    )


def dfq(lr_g: float) -> Callable[..., Dfq]:
    return partial(
        Dfq,
        generator=generator(tail="sigmoid", conv_bias=False),
        optimizer=partial(sgd, lr=0.02),
        optimizer_g=partial(adam, lr=lr_g, betas=(0.5, 0.999)),
        latent=16,
        batch_size=64,
    )


def nayer(lr_g: float, **settings: Any) -> Callable[..., Nayer]:
    chosen = {"g_steps": 10, "g_loops": 1, "g_life": 3, "warmup": 1, "warmup_loops": 3, "kd_steps": 20, "per_batch": 5}
    chosen |= {"dim": 8, "hidden": 16, "batch_size": 64, "kd_batch_size": 64}
    return partial(
        Nayer,
        **{**chosen, **settings},
        num_classes=4,
        generator=generator(tail="sigmoid", conv_bias=False),
        optimizer=partial(sgd, lr=0.02),
        optimizer_g=partial(adam, lr=lr_g, betas=(0.5, 0.999)),
        temperature=4.0,
    )


def disguide(lr_g: float, **settings: Any) -> Callable[..., Disguide]:
    """With a second student of its own at every call."""
    chosen = {"twin": network((8, 16)).net, "questions": 1920, "replay": 3, "diversity": 0.2, "loss": "kl"}
    return partial(
        Disguide,
        **{**chosen, **settings},
        generator=generator(eps=0.8),
        optimizer=partial(adam, lr=5e-3),
        optimizer_g=partial(adam, lr=lr_g),
        latent=16,
        batch_size=64,
    )


def fast_dfkd(lr_g: float, **settings: Any) -> Callable[..., FastDfkd]:
    chosen = {"lr_z": 2 * lr_g, "steps": 5, "warmup": 2, "kd_steps": 20, "per_batch": 5, "kd_batch_size": 64}
    return partial(
        FastDfkd,
        **{**chosen, **settings},
        num_classes=4,
        generator=generator(tail="sigmoid", conv_bias=False),
        optimizer=partial(sgd, lr=0.02),
        optimizer_g=partial(adam, lr=lr_g, betas=(0.5, 0.999)),
        temperature=4.0,
        latent=16,
        batch_size=64,
    )


def cmi(lr_g: float, **settings: Any) -> Callable[..., Cmi]:
    chosen = {"steps": 20, "kd_steps": 40, "per_batch": 10, "kd_batch_size": 64, "bank_size": 128, "negatives": 100}
    return partial(
        Cmi,
        **{**chosen, **settings},
        num_classes=4,
        local=(RandomResizedCrop(),),
        generator=generator(tail="sigmoid", conv_bias=False),
        optimizer=partial(sgd, lr=0.02),
        optimizer_g=partial(adam, lr=lr_g, betas=(0.5, 0.999)),
        optimizer_head=partial(adam, lr=lr_g),
        temperature=4.0,
        head_dim=16,
        latent=16,
        batch_size=64,
    )


def ugan(**settings: Any) -> Callable[..., Ugan]:
    """With networks of its own at every call."""
    small = {"size": 8, "num_classes": CLASSES}
    players = {
        "discriminator": MlpPairs(**small, widths=(32, 16), noise=(0.0, 0.0)),
        "generator": MlpImages(**small, latent=16, hidden=(32,)),
        "bad_generator": MlpImages(size=8, num_classes=0, latent=16, hidden=(32,)),
    }
    players |= dict.fromkeys(("optimizer", "optimizer_d", "optimizer_g", "optimizer_b"), partial(adam, lr=2e-3))
    sizes = {"latent": 16, "made": 16, "d_labelled": 8, "d_unlabelled": 32, "good_from": 0, "ema": 0.9}
    return partial(Ugan, **{**players, **sizes, **settings})


def few_streams(teacher: nn.Module, *, right: bool = True) -> StreamsLoader:
    """Sixteen labelled images, with wrong labels unless ``right``, and five hundred without labels."""
    images, labels = patterns(512, seed=3)
    places = few_places(Split(images, labels), 4, seed=0, classes="abcd")
    labels = labels if right else labels[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    pixels = (images * 255).byte()
    few = TensorLoader(pixels[places], labels[places], batch_size=16, shuffle=True)
    return StreamsLoader(few, TensorLoader(pixels, batch_size=64, shuffle=True))


def rdskd(lr_g: float) -> Callable[..., RdskdGenerator]:
    return partial(
        RdskdGenerator,
        generator=generator(eps=0.8),
        optimizer=partial(adam, lr=lr_g),
        latent=16,
        batch_size=64,
        anchor_every=30,
    )


def rdskd_images(lr_g: float, teacher: nn.Module) -> GeneratedLoader:
    """Phase 1, and what phase 2 sees of it."""
    made = fit(rdskd(lr_g), teacher, range(200)).generator
    assert isinstance(made, nn.Module)
    return GeneratedLoader(made.eval().requires_grad_(False), 200, (64, 16), context())


def impressions(steps: int, teacher: nn.Module) -> TensorLoader:
    source = DataImpressions(images=512, batch_size=64, impressions=64, steps=steps, lr=0.05)
    return source.prepare(context(teacher))


def inverted(steps: int, teacher: nn.Module) -> TensorLoader:
    source = DeepInversion(images=512, batch_size=64, inverted=128, steps=steps, lr=0.1, bn=1.0, jitter=1, flip=False)
    return source.prepare(context(teacher))


def adi(lr: float, **settings: Any) -> Callable[..., AdaptiveDeepInversion]:
    small = {
        "inverted": 64,
        "steps": 60,
        "per_batch": 30,
        "kd_steps": 60,
        "kd_batch_size": 64,
        "jitter": 1,
        "flip": False,
    }
    given = {"image": (1, 8, 8), "optimizer": partial(adam, lr=5e-3), "temperature": 3.0, "lr": lr, "bn": 1.0}
    return partial(AdaptiveDeepInversion, **given | small | settings)


def of_another(loader: TensorLoader) -> TensorLoader:
    """Every image beside the answer to another one."""
    assert loader.answers is not None
    loader.answers = loader.answers[torch.randperm(len(loader.answers), generator=torch.Generator().manual_seed(0))]
    return loader


def few_and_made(teacher: nn.Module) -> TensorLoader:
    """The CVAE's stage, and what the student sees."""
    at = few_shot_context(teacher)
    shape = {"size": 8, "num_classes": CLASSES, "widths": (32, 16)}
    decoder = MlpDecoder(**shape)
    make = partial(Cvae, encoder=MlpEncoder(**shape), generator=decoder, optimizer=partial(adam, lr=3e-3))
    fit(make, teacher, few().prepare(at), epochs=200)
    save_file(decoder.state_dict(), at.store.root / "generator.safetensors")
    expand = MixupCvae(generator=decoder, weights=str(at.store.root / "generator.safetensors"))
    return few(synthetic=500, expand=expand).prepare(at)


def few_and_doubtful(teacher: nn.Module) -> TensorLoader:
    """The stage before the last, and what the last student sees."""
    at = few_shot_context(teacher)
    first = fit(distill(answer_cross_entropy), teacher, few(synthetic=500).prepare(at), epochs=6)
    save_file(first.student.state_dict(), at.store.root / "student.safetensors")
    bare = network((8, 16)).net
    expand = ActiveMixup(network=bare, students=[str(at.store.root / "student.safetensors")], rounds=1)
    return few(synthetic=100, expand=expand).prepare(at)


@dataclass
class Case:
    """A method at the toy's size, and what the tests of all methods make of it."""

    solves: Callable[[], Any] | None = None
    """The method with its signal."""
    broken: Callable[[], Any] | None = None
    """The same with its signal cut off; both see as many batches."""
    rounds: int = 0
    """Of the toy problem, for a method that makes its own images."""
    loader: Callable[[nn.Module], Any] | None = None
    """What training sees of the toy problem, where ``needs`` does not say it."""
    broken_loader: Callable[[nn.Module], Any] | None = None
    epochs: int = 1
    first: int = 10
    """Seed of the generator's first weights: from one in three, RDSKD never finds the second class."""
    order: str = ""
    """Updates of one round, ``g`` for the generator's and ``s`` for the student's; empty where rounds differ."""
    images: int = 0
    """Batches of images that a round makes."""
    method: Any = None
    """Its class, where ``solves`` does not say it."""
    ranks: dict[str, Any] | None = None
    """Settings for a few rounds on two ranks; networks, optimisers and sizes that it takes are given."""
    served: str = ""
    """What those rounds see, where ``needs`` does not say it: ``answers`` or ``generated``."""
    own: bool = False
    """Whether the inner problem, and the pool that it fills, is each rank's own."""
    gathers: bool = False
    """Whether a loss is no mean over samples."""
    tiny: tuple[str, ...] | None = None
    """Overrides for a run from the command line of a few rounds, which is killed after each."""
    source_needs: frozenset[str] = frozenset()
    """What the source that makes its images needs of the teacher."""

    @property
    def target(self) -> Any:
        """The method's class."""
        return self.method or self.solves().func  # type: ignore[misc]

    @property
    def needs(self) -> set[str]:
        """What it needs of teacher and source, as it is set."""
        return self.target.needs(**(self.ranks or {}))

    @property
    def batch_norm(self) -> bool:
        """Whether its teacher, or that of its source, has to have batch norm."""
        return "teacher.batch_norm" in self.needs or "teacher.batch_norm" in self.source_needs

    def toy_rounds(self, teacher: nn.Module, *, broken: bool = False) -> Any:
        """What training sees of the toy problem: numbers of rounds, or images."""
        loader = (self.broken_loader if broken else None) or self.loader
        if loader is not None:
            return loader(teacher)
        return range(self.rounds) if "source.free" in self.needs else real_images(teacher)


HINTON = partial(kl, temperature=4.0)
TERMS = {"response": {"weight": 0.9, "loss": HINTON}}


class Widened(nn.Module):
    """An adapter of the student's map, without batch norm."""

    def __init__(self, *, student_shapes: Any, teacher_shapes: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student_shapes[0][0], teacher_shapes[0][0], 1)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(student), teacher


def similarity(student: torch.Tensor, teacher: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
    """Squared distance between the products of all images with each other, of those of one class only."""
    own, wanted = (F.normalize(x.float().flatten(1)) @ F.normalize(x.float().flatten(1)).T for x in (student, teacher))
    return ((own - wanted).square() * (labels[:, None] == labels)).mean()


FEATURES = {
    "similarity": {
        "weight": 30.0,
        "student": "features.-1",
        "teacher": "features.-1",
        "adapt": Widened,
        "loss": similarity,
        "global_batch": True,
    }
}
CORRELATED = {"correlation": {"weight": 0.02, "loss": partial(dist, temperature=4.0), "global_batch": True}}
POOLED = {"kd_steps": 2, "per_batch": 1}
SCHEDULED = "method.scheduler={_target_: torch.optim.lr_scheduler.ExponentialLR, _partial_: true, gamma: 0.5}"
CROPPED = "data.recipe.augment=[{_target_: kd_lightning.data.augment.RandomCrop, padding: 1}]"
TURNED = "source.augment=[{_target_: kd_lightning.data.augment.RandomAffine}]"
HALVES = "data.recipe.batch_size=600"  # two or three rounds an epoch
TINY_POOL = (
    *("method.per_batch=2", "method.batch_size=16", "method.kd_batch_size=16", "method.generator.ngf=4", CROPPED),
)
CASES = {
    "supervised": Case(lambda: distill(label=1.0), lambda: distill(label=-1.0), epochs=6, ranks={"label": 1.0}),
    "kd": Case(
        lambda: distill(HINTON),
        lambda: distill(flipped),
        epochs=6,
        ranks={"label": 0.1, "terms": TERMS},
        tiny=(SCHEDULED, CROPPED, HALVES),
    ),
    "kd-noise-pool": Case(
        lambda: distill(HINTON), lambda: distill(HINTON), loader=real_images, broken_loader=noise_images, epochs=6
    ),
    "dist": Case(method=Distill, ranks={"label": 0.1, "terms": CORRELATED}, gathers=True),
    "queried": Case(method=Distill, ranks={"label": 0.0, "terms": TERMS}, served="answers"),
    "generated": Case(method=Distill, ranks={"label": 0.0, "terms": TERMS}, served="generated"),
    "features": Case(method=Distill, ranks={"label": 0.1, "terms": FEATURES, "accumulate": 3}, gathers=True),
    "dml": Case(dml, dml, broken_loader=mislabelled, epochs=6, ranks={}),
    "bss": Case(
        bss,
        lambda: bss(alpha=(-4.0, -4.0)),
        epochs=6,
        tiny=("method.n_adv=8", "method.until=2.0", HALVES),
    ),
    "uda_kd": Case(
        uda_kd,
        lambda: uda_kd(beta=(0.0, 0.0), growth="constant"),
        loader=two_domains,
        epochs=6,
        ranks={"teacher_init": "source", "alignment": "mmd"},
        gathers=True,
        tiny=("method.teacher_init=source", "method.alignment=grl", SCHEDULED, CROPPED, HALVES),
    ),
    "dan": Case(method=Dan, ranks={"alignment": "grl"}),
    "dafl": Case(
        lambda: dafl(0.02),
        lambda: dafl(0.0),
        rounds=300,
        order="gs",
        images=1,
        ranks={},
        gathers=True,
        tiny=(SCHEDULED, "method.scheduler_g=${method.scheduler}", "source.rounds=2", "method.ema=0.5"),
    ),
    "dafl-average": Case(method=Dafl, ranks={"ema": 0.5}),
    "mskd": Case(
        lambda: dafl(0.005, ms=1.0),
        lambda: dafl(0.0, ms=1.0),
        rounds=300,
        order="gs",
        images=1,
        ranks={"ms": 1.0},
        gathers=True,
    ),
    "dfad": Case(
        lambda: dfad(1e-3),
        lambda: dfad(0.0),
        rounds=80,
        order="sssssg",
        images=6,
        ranks={},
        tiny=("method.student_steps=2", "source.rounds=2"),
    ),
    "dfad-log": Case(method=Dfad, ranks={"log_distance": True}, gathers=True),
    "rdskd": Case(
        lambda: distill(partial(kl, temperature=10.0)),
        lambda: distill(partial(kl, temperature=10.0)),
        loader=partial(rdskd_images, 1e-3),
        broken_loader=partial(rdskd_images, 0.0),
        first=11,
    ),
    "rdskd-generator": Case(lambda: rdskd(1e-3), order="g", images=1, ranks={"anchor_every": 2}, gathers=True),
    "zskt": Case(
        lambda: zskt(1e-3),
        lambda: zskt(0.0),
        rounds=60,
        order="g" + 10 * "s",
        images=1,
        ranks={"student_steps": 2},
    ),
    "dfq": Case(
        lambda: dfq(1e-3),
        lambda: dfq(0.0),
        rounds=60,
        order="g" + 10 * "s",
        images=11,
        ranks={"student_steps": 2},
        gathers=True,
    ),
    "fast_dfkd": Case(
        lambda: fast_dfkd(5e-3),
        lambda: fast_dfkd(0.0),
        rounds=60,
        ranks={**POOLED, "steps": 2, "warmup": 1, "reset_at": 1},
        own=True,
        tiny=(*TINY_POOL, "method.latent=8", "method.warmup=1", "method.steps=2", "method.kd_steps=4"),
    ),
    "cmi": Case(
        lambda: cmi(1e-2),
        lambda: cmi(0.0),
        rounds=60,
        ranks={**POOLED, "local": (), "steps": 2},
        own=True,
        tiny=(
            *TINY_POOL,
            "method.latent=8",
            "method.steps=4",
            "method.bank_size=64",
            "method.kd_steps=2",
            "method.exchange=0.7",
        ),
    ),
    "adaptive_deep_inversion": Case(
        lambda: adi(0.1),
        lambda: adi(0.0),
        rounds=16,
        ranks={**POOLED, "inverted": 8, "steps": 2},
        own=True,
        tiny=tuple(
            f"method.{key}" for key in ("inverted=8", "steps=4", "kd_steps=2", "kd_batch_size=8", "per_batch=2")
        ),
    ),
    "nayer": Case(
        lambda: nayer(1e-2),
        lambda: nayer(0.0),
        rounds=60,
        ranks={**POOLED, "g_steps": 2, "g_loops": 1, "warmup": 0, "dim": 8, "hidden": 16},
        own=True,
        tiny=(
            *TINY_POOL,
            *("method.warmup=1", "method.warmup_loops=2", "method.g_loops=1", "method.g_steps=2", "method.g_life=1"),
            *("method.kd_steps=4", "method.dim=8", "method.hidden=8"),
        ),
    ),
    "disguide": Case(
        lambda: disguide(2e-2),
        order="gssss",
        images=1,
        ranks={"twin": network((8, 16)).net, "questions": 96, "replay": 1},
        own=True,
        tiny=(
            *("method.questions=48", "method.start=16", "method.replay=1", "method.batch_size=16", "method.latent=8"),
            *("method.generator.ngf=4", "source.rounds=2", "teacher.access=probs", "teacher.budget=48"),
        ),
    ),
    "zskd": Case(
        lambda: distill(partial(kl, temperature=20.0)),
        lambda: distill(partial(kl, temperature=20.0)),
        loader=partial(impressions, 100),
        broken_loader=partial(impressions, 0),
        epochs=10,
    ),
    "deep_inversion": Case(
        lambda: distill(partial(kl, temperature=3.0)),
        lambda: distill(partial(kl, temperature=3.0)),
        loader=partial(inverted, 100),
        broken_loader=partial(inverted, 0),
        epochs=10,
        source_needs=DeepInversion.needs,
    ),
    "fs_bbt": Case(
        lambda: distill(answer_cross_entropy),
        lambda: distill(answer_cross_entropy),
        loader=few_and_made,
        broken_loader=lambda teacher: of_another(few_and_made(teacher)),
        epochs=6,
        tiny=(
            *("source.per_class=3", "source.synthetic=50", "source.batch_size=40", "source.mixup_again=true", TURNED),
            *("fs_bbt.trainer.max_epochs=2", "fs_bbt.source.batch_size=20", "teacher.access=probs"),
        ),
    ),
    "active_mixup": Case(
        lambda: distill(answer_cross_entropy),
        lambda: distill(answer_cross_entropy),
        loader=few_and_doubtful,
        broken_loader=lambda teacher: of_another(few_and_doubtful(teacher)),
        epochs=40,
    ),
    "ugan": Case(
        ugan,
        ugan,
        loader=few_streams,
        broken_loader=partial(few_streams, right=False),
        epochs=12,
        ranks={"pull_away": 0.8, "manifold": 1e-3, "good_from": 0, "balance": 0.1},
        gathers=True,
        tiny=(
            *("source.per_class=3", "source.batch_size=20", "source.unlabelled_batch_size=400", CROPPED),
            *("method.d_unlabelled=150", "method.made=16", "method.latent=8", "method.good_from=1", "method.ema=0.9"),
            *(f"method.{g}.hidden=[8]" for g in ("generator", "bad_generator")),
            *("method.discriminator.widths=[8]", "student.widths=[16,8]"),
        ),
    ),
    "cvae": Case(method=Cvae, ranks={}),
    "biggan": Case(method=BigGan, ranks={"ema": 0.5, "d_steps": 2}),
    "ccgan": Case(method=CcGan, ranks={"d_steps": 2}),
    "ce_gan": Case(method=CeGan, ranks={"conditional": True, "prior": "normal", "penalty": 0.0}),
}
TOY = {name: case for name, case in CASES.items() if case.broken}
"""Those whose student solves the toy problem."""
ROUNDS = {name: case for name, case in CASES.items() if case.order}
"""Those of which every round is the same."""
MAKERS = {name: case for name, case in CASES.items() if case.solves and "source.free" in case.needs}
"""Those that make their own images."""
RANKS = {name: case for name, case in CASES.items() if case.ranks is not None}
"""Those that are tried on two ranks."""
