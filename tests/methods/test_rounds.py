"""What one round of each method with a generator touches, counts and costs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, MAKERS, ROUNDS, adi, cmi, distill
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from toy import context, fit, generator, network, trained_teacher

from kd_lightning.data.augment import RandomResizedCrop
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.networks import head_of
from kd_lightning.sources.data_impressions import DataImpressions, class_similarity, last_weights
from kd_lightning.sources.deep_inversion import DeepInversion
from kd_lightning.sources.frozen_generator import GeneratedLoader

B = 64


@pytest.fixture(scope="module")
def teachers() -> dict[bool, nn.Module]:
    return {batch_norm: trained_teacher(batch_norm=batch_norm) for batch_norm in (False, True)}


@pytest.fixture
def teacher(name: str, teachers: dict[bool, nn.Module]) -> nn.Module:
    return teachers[CASES[name].batch_norm]


def state(net: nn.Module) -> str:
    """A hash of every weight and buffer."""
    total = hashlib.sha256()
    for tensor in net.state_dict().values():
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def gradients(net: nn.Module) -> bool:
    return any(p.grad is not None for p in net.parameters())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str, bool]]:
    """(who steps, the student's state before and after, whether the other was given gradients) of every update."""
    seen: list[tuple[str, str, str, bool]] = []
    update = Distiller.update

    def spied(self: Any, opt: Any, loss: Tensor) -> None:
        own = opt.param_groups[0]["params"][0]
        who = "student" if any(p is own for p in self.student.parameters()) else "generator"
        other = self.generator if who == "student" else self.student
        other.zero_grad()
        before = seen[-1][2] if seen else self.first_state
        update(self, opt, loss)
        seen.append((who, before, state(self.student), gradients(other)))

    monkeypatch.setattr(Distiller, "update", spied)
    monkeypatch.setattr(
        Distiller, "on_fit_start", lambda self: setattr(self, "first_state", state(self.student)), raising=False
    )
    return seen


@pytest.mark.parametrize("name", MAKERS)
def test_the_teacher_comes_out_bit_identical(name: str, teacher: nn.Module) -> None:
    before = state(teacher)
    fit(MAKERS[name].solves(), teacher, range(4))
    assert state(teacher) == before
    assert not gradients(teacher)
    assert not any(module.training for module in teacher.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


@pytest.mark.parametrize("name", ROUNDS)
def test_each_step_moves_its_own_network_alone(
    name: str, teacher: nn.Module, steps: list[tuple[str, str, str, bool]]
) -> None:
    method = fit(ROUNDS[name].solves(), teacher, range(2), batch_norm=ROUNDS[name].batch_norm)
    assert steps
    for who, before, after, leaked in steps:
        assert not leaked
        # with batch norm in dfq's student: its running statistics stand still as well
        assert (before != after) == (who == "student")
    assert all(p.requires_grad for p in method.student.parameters())


@pytest.mark.parametrize("name", ROUNDS)
def test_the_order_of_a_round(name: str, teacher: nn.Module, steps: list[tuple[str, str, str, bool]]) -> None:
    case = ROUNDS[name]
    method = fit(case.solves(), teacher, range(2))
    assert "".join(who[0] for who, *_ in steps) == case.order * 2
    assert method.student_updates_per_round() == case.order.count("s")


class Waits(TorchDispatchMode):
    """Counts what makes a processor wait for its device: values that Python reads, and shapes that depend on values."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0].lstrip("_")
        if any(name.startswith(read.lstrip("_")) for read in self.READS):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_never_waits_for_its_device(name: str, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[list[str]] = []
    target = ROUNDS[name].target
    step = target.training_step

    def spied(self: Any, *batch: Any) -> Any:
        with Waits() as counted:
            done = step(self, *batch)
        waits.append(counted.seen)
        return done

    monkeypatch.setattr(target, "training_step", spied)
    fit(ROUNDS[name].solves(), teacher, range(4))
    assert len(waits) == 4
    assert not any(waits[1:]), waits  # the first round may look at what it got


@pytest.mark.parametrize("name", ROUNDS)
def test_images_synthesised(name: str, teacher: nn.Module) -> None:
    assert fit(ROUNDS[name].solves(), teacher, range(2), epochs=2).images_made == 4 * ROUNDS[name].images * B


def flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class Costs:
    """FLOPs of one network on one batch: forward, training it, and gradients through it to its input."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        net.requires_grad_(True)
        with torch.no_grad():
            self.forward = flops(lambda: net(x))
        self.train = flops(lambda: net(x).sum().backward())
        net.requires_grad_(False)
        self.through = flops(lambda: net(x.clone().requires_grad_()).sum().backward())
        assert self.train <= 3 * self.forward
        assert self.through <= 2 * self.forward


@pytest.mark.parametrize("name", ["dafl", "dfad", "rdskd-generator", "zskt", "dfq", "generated"])
def test_no_forward_or_backward_pass_too_many(name: str, teachers: dict[bool, nn.Module]) -> None:
    """The least that the mathematics allows, in the units of one forward: a training step is 3, a way through is 2."""
    batch_norm = CASES[name].batch_norm
    made = generator(tail="bn") if name == "zskt" else generator(conv_bias=name != "dfq")
    g = Costs(made, torch.randn(B, 16))
    t = Costs(trained_teacher(batch_norm=batch_norm), torch.rand(B, 1, 8, 8))
    s = Costs(network((8, 16)), torch.rand(B, 1, 8, 8))
    imitate = g.forward + t.forward + s.train
    least = {
        "dafl": g.train + t.through + s.train,
        "rdskd-generator": g.train + t.through,
        "dfad": 5 * imitate + g.train + t.through + s.through,
        "zskt": g.train + t.through + s.through + g.forward + t.forward + 10 * s.train,
        "dfq": g.train + t.through + s.through + 10 * imitate,
        "generated": imitate,
    }[name]
    if name == "generated":
        loader = GeneratedLoader(made.eval(), 1, (B, 16), context())
        make, rounds = distill(kl), loader
    else:
        make, rounds = ROUNDS[name].solves(), range(1)
    assert flops(lambda: fit(make, teachers[batch_norm], rounds)) == least


def test_a_step_on_pixels_takes_one_way_through_each_network_that_judges_them(
    teachers: dict[bool, nn.Module],
) -> None:
    teacher, x = teachers[True], torch.rand(B, 1, 8, 8)
    t, s = Costs(teacher, x), Costs(network((8, 16)), x)
    inversion = DeepInversion(images=B, batch_size=B, inverted=B, steps=3, flip=False)
    impressions = DataImpressions(images=B, batch_size=B, impressions=B, steps=3)
    assert flops(lambda: inversion.prepare(context(teacher))) == 3 * t.through
    similarity = flops(lambda: class_similarity(last_weights(teacher)))
    assert flops(lambda: impressions.prepare(context(teacher))) == similarity + 3 * t.through + t.forward
    settings = {"inverted": B, "steps": 3, "kd_steps": 3, "per_batch": 3, "kd_batch_size": B}
    # images that are never augmented are asked about once, however often the student learns from them
    a_period = 3 * (t.through + s.through) + 2 * t.forward + 3 * s.train
    assert flops(lambda: fit(adi(0.1, **settings), teacher, range(2))) == a_period


def test_a_step_of_contrast_asks_the_teacher_once_for_each_view(teachers: dict[bool, nn.Module]) -> None:
    teacher, kept = teachers[True], []
    make = cmi(1e-2, steps=2, per_batch=2, kd_steps=2)
    spent = flops(lambda: kept.append(fit(make, teacher, range(2))))
    x, z = torch.rand(B, 1, 8, 8), torch.randn(B, 16, requires_grad=True)
    g, t, s = Costs(generator(conv_bias=False), z), Costs(teacher, x), Costs(network((8, 16)), x)
    head = copy.deepcopy(kept[0].head)
    h = Costs(head, torch.rand(B, head[0].in_features, requires_grad=True))
    # every query meets every key, and gradients reach the queries alone
    meet = 2 * 2 * B * B * head[2].out_features
    crop = flops(lambda: RandomResizedCrop()(x, torch.Generator()))
    # nobody reads the logits of the local view: no gradient comes back through the layer that makes them
    last = teacher.get_submodule(head_of(teacher))
    unread = flops(lambda: last(torch.rand(B, last.in_features)))
    synthesis = g.train + 2 * t.through - unread + s.through + h.train + h.forward + meet + crop
    once = (g.forward + t.forward) // B  # one image says how long the features are
    assert spent == once + 2 * synthesis + t.forward + 2 * s.train
