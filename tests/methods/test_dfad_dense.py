"""DFAD for segmentation: the mechanism, on scenes that a processor has in seconds."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_rounds import state
from torch import Tensor, nn
from toy import adam, sgd, trainer

from kd_lightning.core.segmentation import Segmentation
from kd_lightning.data.datasets.scenes import camvid
from kd_lightning.data.joint import CropTogether
from kd_lightning.data.module import Images
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.data_free.dfad import Dfad
from kd_lightning.networks.generators.dcgan import GeneratorB
from kd_lightning.networks.normalized import Normalized
from kd_lightning.networks.segmenters.encoder_decoder import EncoderDecoder
from kd_lightning.networks.segmenters.small import SmallSegmenter
from kd_lightning.teachers.white_box import FrozenTeacher

B = 8
STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3}
REAL = [pytest.mark.realdata, pytest.mark.slow]


@pytest.fixture(scope="module", params=["colours", pytest.param("camvid", marks=REAL)])
def teacher(request: pytest.FixtureRequest) -> nn.Module:
    """One that separates the colours of a pixel's surroundings, or one of street scenes at 120x90."""
    return colours() if request.param == "colours" else of_camvid()


def colours() -> nn.Module:
    torch.manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        x = F.interpolate(torch.rand(B, 3, 4, 6), scale_factor=8.0, mode="bilinear")
        label = (x.mean(1) * 2.5).long() + 3 * (x[:, 0] > x[:, 2])
        return x, label.clamp(max=4)

    return trained(EncoderDecoder(num_classes=5, widths=(8, 16)), batch, steps=60)


def of_camvid() -> nn.Module:
    root = os.environ.get("KD_DATA_DIR", "")
    if not root or not Path(root, "camvid").is_dir():
        pytest.skip("KD_DATA_DIR holds no camvid")
    torch.manual_seed(0)
    data = camvid.load(task=Segmentation(11), root=root, size=(90, 120)).train
    assert data is not None
    crop, generator = CropTogether(64), torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(data.images), (16,), generator=generator)
        x, y = crop(data.images[pick].float() / 255, generator, data.labels[pick].long())
        assert y is not None
        return x, y

    return trained(SmallSegmenter(num_classes=11), batch, steps=150)


def trained(net: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], steps: int) -> nn.Module:
    net = Normalized(net, **STATISTICS)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        x, label = batch()
        loss = F.cross_entropy(net(x), label, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.zero_grad()
    return net.eval().requires_grad_(False)


def fit(teacher: Any, rounds: int, *, dropout: float = 0.0, lr_g: float = 1e-3, **settings: Any) -> Dfad:
    torch.manual_seed(1)
    real = isinstance(teacher.net, SmallSegmenter)
    classes = teacher.net.head.out_channels
    if real and not dropout:
        student: nn.Module = SmallSegmenter(num_classes=classes, widths=(8, 16, 32, 32, 32))
    else:
        student = EncoderDecoder(num_classes=classes, widths=(6, 12), dropout=dropout)
    method = Dfad(
        student=Normalized(student, **STATISTICS),
        teacher=FrozenTeacher(teacher),
        task=Segmentation(classes),
        generator=GeneratorB(latent=8, size=(48, 64) if real else (16, 32), ngf=4),
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
