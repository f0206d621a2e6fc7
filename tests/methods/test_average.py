"""The moving average of the generator: its closed form, its share of the student's images, and nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import dafl, dfad, dfq, disguide, zskt
from test_rounds import state
from torch import Tensor, nn
from toy import fit, trained_teacher

from kd_lightning.errors import ConfigError
from kd_lightning.methods.base.generator_pair import GeneratorPair

B = 64
PAIRS: dict[str, Callable[..., Any]] = {"dafl": dafl, "dfad": dfad, "zskt": zskt, "dfq": dfq, "disguide": disguide}


@pytest.fixture(scope="module")
def teachers() -> dict[bool, nn.Module]:
    return {batch_norm: trained_teacher(batch_norm=batch_norm) for batch_norm in (False, True)}


def trained(name: str, teachers: dict[bool, nn.Module], rounds: int = 2, **settings: Any) -> GeneratorPair:
    torch.manual_seed(5)
    make = PAIRS[name](0.01)
    make.keywords.update(settings)
    method = fit(make, teachers[name == "dfq"], range(rounds))
    assert isinstance(method, GeneratorPair)
    return method


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "dafl")) for n in PAIRS])
def test_without_a_share_the_average_changes_nothing(name: str, teachers: dict[bool, nn.Module]) -> None:
    bare, beside, shared = (
        trained(name, teachers, **given) for given in ({}, {"ema_share": 0.0, "ema": 0.9}, {"ema": 0.9})
    )
    for part in ("student", "generator"):
        assert state(getattr(bare, part)) == state(getattr(beside, part))
    assert state(bare.student) != state(shared.student)
    assert bare.images_made == shared.images_made
    assert not any(key.startswith("averaged") for key in bare.state_dict())


@pytest.mark.parametrize("name", ["dafl", "dfad"])
def test_the_average_in_closed_form(
    name: str, teachers: dict[bool, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """d^n w_0 + (1 - d) sum of d^(n-i) w_i, over the generator's steps and no others."""
    seen: list[Tensor] = []
    update = GeneratorPair.update

    def spying(self: GeneratorPair, opt: Any, loss: Tensor) -> None:
        weight = self.generator.project.weight  # type: ignore[union-attr]
        before = weight.detach().clone()  # type: ignore[operator]
        update(self, opt, loss)
        if not seen:
            seen.append(before)
        if not torch.equal(before, weight):  # type: ignore[arg-type]
            seen.append(weight.detach().clone())  # type: ignore[operator]

    monkeypatch.setattr(GeneratorPair, "update", spying)
    method = trained(name, teachers, rounds=4, ema=0.75)
    assert len(seen) == 5
    wanted = 0.75**4 * seen[0] + sum(0.25 * 0.75 ** (4 - i) * seen[i] for i in range(1, 5))
    assert method.averaged is not None
    torch.testing.assert_close(method.averaged.project.weight, wanted)
    assert not any(p.requires_grad or p.grad is not None for p in method.averaged.parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_the_last_of_the_students_images_are_the_averages(
    name: str, teachers: dict[bool, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of them; the average is made to paint all black, which the generator cannot."""
    black: list[int] = []

    class Black(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.zeros(len(z), 1, 8, 8)

    def start(self: GeneratorPair) -> None:
        self.averaged = Black()
        self.student.register_forward_pre_hook(
            lambda module, args: black.append(int((args[0] == 0).flatten(1).all(1).sum())) if module.training else None
        )

    monkeypatch.setattr(GeneratorPair, "on_fit_start", start, raising=False)
    monkeypatch.setattr("kd_lightning.methods.base.generator_pair.average", lambda *_: None)
    trained(name, teachers, rounds=1, ema=0.5, ema_share=0.25)
    assert next(filter(None, black)) == B // 4


def test_the_averages_images_have_its_own_answers(
    teachers: dict[bool, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DAFL's student learns of the teacher's answers to what it sees, not of those to the generator's images."""
    seen: list[tuple[Tensor, Tensor]] = []
    import kd_lightning.methods.data_free.dafl as module

    kl = module.kl
    images: list[Tensor] = []
    monkeypatch.setattr(module, "kl", lambda s, t: (seen.append((images[-1], t)), kl(s, t))[1])

    def start(self: GeneratorPair) -> None:
        self.student.register_forward_pre_hook(lambda _, args: images.append(args[0]))

    monkeypatch.setattr(GeneratorPair, "on_fit_start", start, raising=False)
    trained("dafl", teachers, ema=0.9, ema_share=0.5)
    teacher = copy.deepcopy(teachers[False])
    for x, t in seen:
        torch.testing.assert_close(teacher(x), t)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("settings", "said"), [({"ema": 1.0}, "method.ema=1.0"), ({"ema_share": 1.0}, "method.ema_share=1.0")]
)
def test_values_out_of_range(settings: dict[str, float], said: str, teachers: dict[bool, nn.Module]) -> None:
    with pytest.raises(ConfigError, match=said):
        trained("dafl", teachers, **settings)
