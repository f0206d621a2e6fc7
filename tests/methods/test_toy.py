"""Every method solves the toy problem, and the same run with its signal cut off does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from toy import STATISTICS, adam, agreement, fit, generator, patterns, sgd, trained_teacher

from kd_lightning.data.loader import TensorLoader
from kd_lightning.losses.response import kl
from kd_lightning.methods.dafl import Dafl
from kd_lightning.methods.dfad import Dfad
from kd_lightning.methods.distill import Distill


def real_images() -> TensorLoader:
    images, labels = patterns(512, seed=3)
    return TensorLoader((images * 255).byte(), labels, batch_size=64, shuffle=True)


def noise_images() -> TensorLoader:
    noise = torch.rand(512, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorLoader((noise * 255).byte(), torch.zeros(512), batch_size=64, shuffle=True)


def flipped(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return -kl(student, teacher, temperature=4.0)


def distill(loss: Any = None, *, label: float = 0.0) -> Callable[..., Distill]:
    terms = {"response": {"weight": 0.9, "loss": loss}} if loss else {}
    return partial(Distill, optimizer=partial(adam, lr=5e-3), label=label, terms=terms)


def dafl(lr_g: float) -> Callable[..., Dafl]:
    return partial(
        Dafl,
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


@dataclass
class Row:
    """A method with its signal, and with the signal cut off; both see as many batches."""

    solves: Callable[[], Any]
    broken: Callable[[], Any]
    rounds: Any
    broken_rounds: Any = None
    epochs: int = 1


HINTON = partial(kl, temperature=4.0)
ROWS = {
    "supervised": Row(lambda: distill(label=1.0), lambda: distill(label=-1.0), real_images, epochs=6),
    "kd": Row(lambda: distill(HINTON), lambda: distill(flipped), real_images, epochs=6),
    "kd-noise-pool": Row(lambda: distill(HINTON), lambda: distill(HINTON), real_images, noise_images, epochs=6),
    "dafl": Row(lambda: dafl(0.02), lambda: dafl(0.0), lambda: range(300)),
    "dfad": Row(lambda: dfad(1e-3), lambda: dfad(0.0), lambda: range(80)),
}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """Knows the patterns to the last one."""
    net = trained_teacher()
    images, labels = patterns(512, seed=2)
    assert float((net(images).argmax(1) == labels).float().mean()) > 0.98
    return net


@pytest.mark.parametrize("name", ROWS)
def test_the_method_solves_the_toy_problem(name: str, teacher: nn.Module) -> None:
    row = ROWS[name]
    torch.manual_seed(10)
    method = fit(row.solves(), teacher, row.rounds(), epochs=row.epochs)
    assert agreement(method.student, teacher) >= 0.9


@pytest.mark.parametrize("name", ROWS)
def test_without_its_signal_it_does_not(name: str, teacher: nn.Module) -> None:
    row = ROWS[name]
    torch.manual_seed(10)
    method = fit(row.broken(), teacher, (row.broken_rounds or row.rounds)(), epochs=row.epochs)
    assert agreement(method.student, teacher) <= 0.75


@pytest.mark.parametrize("name", ["dafl", "dfad"])
def test_the_student_sees_standardised_images_as_the_paper_feeds_them(name: str, teacher: nn.Module) -> None:
    """The generator's door and the classifier's normalisation cancel: the bare network gets tanh-BN's output."""
    made = {"dafl": dafl, "dfad": dfad}[name](1e-3).keywords["generator"]
    entering: list[torch.Tensor] = []
    teacher.net.register_forward_pre_hook(lambda _module, args: entering.append(args[0]))  # type: ignore[operator]
    with torch.no_grad():
        teacher(made(torch.randn(256, 16)))
    teacher.net._forward_pre_hooks.clear()
    assert entering[0].mean().abs() < 1e-3
    assert abs(float(entering[0].std()) - 1) < 1e-2
    assert STATISTICS["mean"] != [0.0]
