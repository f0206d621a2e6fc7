"""DFAD for segmentation: the mechanism, on scenes that a processor has in seconds."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_rounds import state
from torch import Tensor, nn
from toy import adam, sgd, trainer

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.module import Images
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.data_free.dfad import Dfad
from kd_lightning.networks.generators.dcgan import DcganGenerator
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.segmenters.encoder_decoder import EncoderDecoder
from kd_lightning.teachers.white_box import FrozenTeacher

CLASSES, B = 5, 8
STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """One that separates the colours of a pixel's surroundings."""
    torch.manual_seed(0)
    net = Normalized(EncoderDecoder(num_classes=CLASSES, widths=(8, 16)), **STATISTICS)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        x = F.interpolate(torch.rand(B, 3, 4, 6), scale_factor=8.0, mode="bilinear")
        label = (x.mean(1) * 2.5).long() + 3 * (x[:, 0] > x[:, 2])
        loss = F.cross_entropy(net(x), label.clamp(max=CLASSES - 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.zero_grad()
    return net.eval().requires_grad_(False)


def fit(teacher: nn.Module, rounds: int, *, dropout: float = 0.0, lr_g: float = 1e-3, **settings: Any) -> Dfad:
    torch.manual_seed(1)
    method = Dfad(
        student=Normalized(EncoderDecoder(num_classes=CLASSES, widths=(6, 12), dropout=dropout), **STATISTICS),
        teacher=FrozenTeacher(teacher),
        task=Segmentation(CLASSES),
        generator=DcganGenerator(latent=8, size=(16, 32), ngf=4),
        latent=8,
        batch_size=B,
        optimizer=partial(sgd, lr=0.05),
        optimizer_g=partial(adam, lr=lr_g),
        **{"log_distance": True, **settings},
    )
    trainer(1).fit(method.train(), Images(range(rounds), None))
    return method


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Tensor]]:
    """Whose weights each update moved, and its loss."""
    seen: list[tuple[str, Tensor]] = []
    update = Distiller.update

    def spied(self: Any, opt: Any, loss: Tensor) -> None:
        own = opt.param_groups[0]["params"][0]
        seen.append(("s" if any(p is own for p in self.student.parameters()) else "g", loss.detach().clone()))
        update(self, opt, loss)

    monkeypatch.setattr(Distiller, "update", spied)
    return seen


def test_imitation_of_a_generator_that_stands_still_halves_the_distance(teacher, updates) -> None:
    before = state(teacher)
    method = fit(teacher, 20, lr_g=0.0)
    losses = [float(loss) for who, loss in updates if who == "s"]
    assert len(losses) == 100
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]
    assert state(teacher) == before
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert method.images_made == 20 * 6 * B


def test_a_round_is_five_imitations_and_one_generation(teacher, updates) -> None:
    fit(teacher, 3)
    assert "".join(who for who, _ in updates) == 3 * "sssssg"


def test_a_step_of_the_generator_raises_the_distance_on_its_own_batch(teacher, monkeypatch) -> None:
    seen: dict[str, Any] = {}
    update = Distiller.update

    def distance(method: Any) -> float:
        student, made = copy.deepcopy(method.student), copy.deepcopy(method.generator)
        with torch.no_grad():
            x = made(seen["z"])
            return float((student(x) - teacher(x)).abs().mean())

    def updating(self: Any, opt: Any, loss: Tensor) -> None:
        if any(p is opt.param_groups[0]["params"][0] for p in self.student.parameters()):
            update(self, opt, loss)
            return
        seen["before"] = distance(self)
        update(self, opt, loss)
        seen["after"] = distance(self)

    def latents(self: Any, n: int) -> Tensor:
        seen["z"] = self.noise(n, self.latent)
        return seen["z"]

    monkeypatch.setattr(Distiller, "update", updating)
    monkeypatch.setattr(Dfad, "latents", latents)
    fit(teacher, 1, lr_g=1e-4)  # Adam's first step goes along the signs of the gradient
    assert seen["after"] > seen["before"]


@pytest.mark.parametrize("log", [True, False])
def test_the_generator_maximises_the_distance_over_maps_or_its_logarithm(log, teacher, monkeypatch) -> None:
    losses: list[float] = []
    noted: dict[str, float] = {}
    update = Distiller.update
    monkeypatch.setattr(
        Distiller, "update", lambda self, opt, loss: (losses.append(loss.item()), update(self, opt, loss))[1]
    )
    monkeypatch.setattr(
        Distiller, "record", lambda self, **terms: noted.update({k: v.item() for k, v in terms.items()})
    )
    fit(teacher, 1, log_distance=log)
    distance = torch.tensor(noted["distance"])
    assert losses[5] == pytest.approx(float(-torch.log1p(distance) if log else -distance), rel=1e-6)
    assert losses[5] < 0 < losses[4] == pytest.approx(noted["l1"])


def test_the_students_dropout_is_active_while_it_imitates_and_while_the_generator_learns(teacher, monkeypatch) -> None:
    drawn: list[bool] = []
    dropout = F.dropout2d

    def watched(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        drawn.append(training and p == 0.5)
        return dropout(x, p, training, inplace)

    monkeypatch.setattr(F, "dropout2d", watched)
    method = fit(teacher, 2, dropout=0.5)
    of_student = [each for each in drawn if each]
    assert len(of_student) == 2 * 6
    drawn.clear()
    method.student.eval()(torch.rand(1, 3, 16, 16))
    assert drawn == [False]


def test_it_takes_classes_of_images_and_of_pixels_and_no_numbers() -> None:
    assert {need for need in Dfad.needs() if need.startswith("task.")} == {"task.classification", "task.segmentation"}
