"""DAFL's joint step, and the mode-seeking term that makes it MSKD."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import dafl
from torch import Tensor, nn
from toy import STATISTICS, fit, trained_teacher

from kd_lightning.core.feature_hooks import capture
from kd_lightning.losses.diversity import mode_seeking
from kd_lightning.losses.image_prior import activation, information_entropy, one_hot
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Distiller


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher()


@pytest.fixture
def round_(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of the last round: both networks before it, its latents, its terms, and each network's gradients."""
    seen: dict[str, Any] = {}
    update = Distiller.update

    def start(self: Any) -> None:
        seen.update(student=copy.deepcopy(self.student), generator=copy.deepcopy(self.generator))
        self.generator.register_forward_pre_hook(lambda _module, args: seen.update(z=args[0]))

    def updating(self: Any, opt: Any, loss: Tensor) -> None:
        update(self, opt, loss)
        parameters = opt.param_groups[0]["params"]
        seen.setdefault("gradients", []).append([p.grad.clone() for p in parameters])

    monkeypatch.setattr(Distiller, "on_fit_start", start, raising=False)
    monkeypatch.setattr(Distiller, "update", updating)
    monkeypatch.setattr(Distiller, "record", lambda self, **terms: seen.update({k: v.item() for k, v in terms.items()}))
    return seen


def test_two_backward_passes_equal_the_joint_one(teacher: nn.Module, round_: dict[str, Any]) -> None:
    fit(dafl(0.02), teacher, range(1))
    generator, student = round_["generator"].train(), round_["student"].train()
    x = generator(round_["z"])
    with capture(teacher, inputs=("net.head",)) as taps:
        t = teacher(x)
    features = taps["net.head"]
    losses = {
        "oh": one_hot(t),
        "ie": 5.0 * information_entropy(t),
        "act": 0.1 * activation(features),
        "kd": kl(student(x.detach()), t.detach()),
    }
    torch.stack(list(losses.values())).sum().backward()
    for name, loss in losses.items():
        assert round_[name] == pytest.approx(loss.item(), rel=1e-5), name
    for net, got in zip((generator, student), round_["gradients"], strict=True):
        for parameter, gradient in zip(net.parameters(), got, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)


def test_mode_seeking_is_measured_on_standardised_pixels(teacher: nn.Module, round_: dict[str, Any]) -> None:
    method = fit(dafl(0.02, ms=0.5), teacher, range(1))
    assert method.seen is not None
    wanted = mode_seeking(method.seen.images / STATISTICS["std"][0], round_["z"])
    assert round_["ms"] == pytest.approx(0.5 * wanted.item(), rel=1e-4)


def test_without_its_weight_dafl_has_no_such_term(teacher: nn.Module, round_: dict[str, Any]) -> None:
    fit(dafl(0.02), teacher, range(1))
    assert "ms" not in round_


def test_the_codes_entropy_counts_in_powers_of_ten(teacher: nn.Module, round_: dict[str, Any]) -> None:
    fit(dafl(0.02), teacher, range(1))
    nats = round_["ie"]
    fit(dafl(0.02, variant="code"), teacher, range(1))
    # another generator: only the unit's bound tells the two apart for sure
    assert -5 * 1.386295 <= nats < 0
    assert -5 * 0.602060 <= round_["ie"] < 0
