"""FastDFKD: what the generator learns from its copies, in which order, and what it costs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import fast_dfkd
from conftest import composed
from test_rounds import Costs, flops
from torch import nn
from torch.nn import functional as F
from toy import fit, network, trained_teacher

from kd_lightning.config.check import faults
from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.data_free.fast_dfkd import FastDfkd

B = 64


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher(batch_norm=True)


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize(
    ("rounds", "warmup", "order"),
    [(12, 0, "gssssgssssgs"), (12, 2, "gggssgssssgs"), (12, 7, "ggggggggssgs")],
)
def test_the_order_of_a_fit(
    rounds: int, warmup: int, order: str, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One action a training batch: all rounds of warm-up first, then one that makes images for four that distil."""
    done: list[str] = []
    for name in ("synthesise", "distil"):
        action = getattr(FastDfkd, name)
        letter = "g" if name == "synthesise" else "s"
        monkeypatch.setattr(FastDfkd, name, lambda self, a=action, k=letter: (done.append(k), a(self))[1])
    updates: list[int] = []
    update = Distiller.update
    monkeypatch.setattr(Distiller, "update", lambda *args: (updates.append(1), update(*args))[1])
    method = fit(fast_dfkd(5e-3, warmup=warmup), teacher, range(rounds))
    assert "".join(done) == order
    assert len(updates) == method.student_updates(rounds) == 5 * order.count("s")
    assert method.images_made == len(method.pool) == B * order.count("g")


def one_inner_step(teacher: nn.Module, meta: str, lr_g: float = 1e-3, **settings: Any) -> dict[str, Any]:
    """One synthesis of a generator, with the gradient that moved it, its own loss's gradient, and its weights."""
    seen: dict[str, Any] = {}
    make = fast_dfkd(lr_g, meta=meta, warmup=0, adv=0.0, **settings)
    first = make.keywords["generator"]
    seen["before"], seen["running"] = weights(first), copy.deepcopy(dict(first.named_buffers()))

    def spying(self: FastDfkd) -> None:
        seen["gradient"] = [p.grad.clone() for p in self.generator.parameters()]
        seen["lr"] = self.opts()[1].param_groups[0]["lr"]

    noise = FastDfkd.noise
    randint = torch.randint

    def noting_z(self: FastDfkd, *shape: int) -> torch.Tensor:
        seen["z"] = noise(self, *shape)
        return seen["z"].clone()

    def noting_y(*args: Any, **rest: Any) -> torch.Tensor:
        seen["y"] = randint(*args, **rest)
        return seen["y"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastDfkd, "average_gradient", spying)
        patch.setattr(FastDfkd, "noise", noting_z)
        patch.setattr(torch, "randint", noting_y)
        method = fit(make, teacher, range(1))
    seen["method"] = method
    return seen


def test_with_one_step_the_meta_gradient_is_the_plain_one(teacher: nn.Module) -> None:
    seen = one_inner_step(teacher, "maml", steps=1)
    generator = fast_dfkd(0.0).keywords["generator"]
    for p, before in zip(generator.parameters(), seen["before"], strict=True):
        p.data.copy_(before)
    with BatchNormTap(teacher) as tap:
        t = teacher(generator(seen["z"]))
    loss = 10 * batch_norm_statistics(tap.statistics, tap.layers) + 0.4 * F.cross_entropy(t, seen["y"])
    wanted = torch.autograd.grad(loss, list(generator.parameters()))
    for got, plain in zip(seen["gradient"], wanted, strict=True):
        assert torch.allclose(got, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_meta_step_is_as_long_as_the_inner_ones_together(steps: int, teacher: nn.Module) -> None:
    seen = one_inner_step(teacher, "maml", steps=steps)
    assert seen["lr"] == pytest.approx(steps * 1e-3)
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(weights(seen["method"].generator), seen["before"], strict=True)]
    )
    # Adam's first step has the length of its learning rate in every weight
    assert moved.abs().median().item() == pytest.approx(steps * 1e-3, rel=1e-2)


def test_the_copy_is_a_copy(teacher: nn.Module) -> None:
    """Neither the inner steps nor the copy's batch norms reach the generator: only the meta step moves it."""
    seen = one_inner_step(teacher, "reptile", lr_g=1e-3, steps=3)
    for name, buffer in seen["method"].generator.named_buffers():
        assert torch.equal(buffer, seen["running"][name])
    # Reptile: against the way that the copy has gone, which is at most three steps of Adam
    way = torch.cat([g.flatten() for g in seen["gradient"]]) / 67
    assert 1e-3 < way.abs().max() < 3.5e-3
    moved = [a - b for a, b in zip(weights(seen["method"].generator), seen["before"], strict=True)]
    for step, gradient in zip(moved, seen["gradient"], strict=True):
        clear = gradient.abs() > 1e-3
        assert torch.equal(step[clear].sign(), -gradient[clear].sign())


def test_a_batch_has_to_explain_a_part_of_the_statistics(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second round on; the average takes in the last inner step, once a round."""
    averages: list[Any] = []
    from kd_lightning.methods.base import statistics as module

    def noting(statistics: Any, layers: Any, *, ema: Any, momentum: float) -> torch.Tensor:
        averages.append((ema, [(m.detach().clone(), v.detach().clone()) for m, v in statistics]))
        assert momentum == 0.9
        return batch_norm_statistics(statistics, layers, ema=ema, momentum=momentum)

    monkeypatch.setattr(module, "batch_norm_statistics", noting)
    fit(fast_dfkd(5e-3, warmup=2, steps=2), teacher, range(3))
    (none, _), (also_none, first), (ema, _), (same, second), (mixed, _), _ = averages
    assert none is also_none is None
    assert ema is same
    for (m, v), (a, b) in zip(ema, first, strict=True):
        assert torch.equal(m, a)
        assert torch.equal(v, b)
    for (m, v), (old_m, old_v), (a, b) in zip(mixed, ema, second, strict=True):
        assert torch.allclose(m, 0.9 * old_m + 0.1 * a)
        assert torch.allclose(v, 0.9 * old_v + 0.1 * b)


def test_the_game_begins_after_warmup_and_pulls_the_generator(
    teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms: list[dict[str, float]] = []
    pulls: list[float] = []

    def recording(self: Any, **seen: torch.Tensor) -> None:
        terms.append({k: v.item() for k, v in seen.items()})

    def pulling(self: FastDfkd) -> None:
        pulls.append(sum(float(p.grad.abs().sum()) for p in self.generator.parameters()))

    monkeypatch.setattr(FastDfkd, "record", recording)
    monkeypatch.setattr(FastDfkd, "average_gradient", pulling)
    fit(fast_dfkd(5e-3, warmup=2, bn=0.0, oh=0.0), teacher, range(6))
    made = [t for t in terms if "bn" in t]
    assert ["adv" in t for t in made] == [False, False, True, True]
    assert made[-1]["adv"] < 0
    # nothing but the game has a weight: it alone pulls
    assert pulls[:2] == [0, 0]
    assert pulls[-1] > 0


def test_the_first_layer_is_drawn_anew_once(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    at: list[int] = []
    redraw = FastDfkd.redraw_first_layer

    def noting(self: FastDfkd) -> None:
        at.append(self.pool.added // B)
        redraw(self)
        assert 0.01 < self.generator.project.weight.std().item() < 0.03
        assert not self.generator.project.bias.any()

    monkeypatch.setattr(FastDfkd, "redraw_first_layer", noting)
    fit(fast_dfkd(5e-3, warmup=1, reset_at=2), teacher, range(22))
    assert at == [3]


def test_no_forward_or_backward_pass_too_many(teacher: nn.Module) -> None:
    """An inner step trains the copy and crosses teacher and student; statistics and copies cost no product."""
    make = fast_dfkd(5e-3, warmup=0, steps=3)
    g = Costs(copy.deepcopy(make.keywords["generator"]), torch.randn(B, 16).requires_grad_())
    t = Costs(trained_teacher(batch_norm=True), torch.rand(B, 1, 8, 8))
    s = Costs(network((8, 16)), torch.rand(B, 1, 8, 8))
    assert flops(lambda: fit(make, teacher, range(1))) == 3 * (g.train + t.through + s.through)
    make = fast_dfkd(5e-3, warmup=0, steps=3)
    both = flops(lambda: fit(make, teacher, range(2)))
    assert both == 3 * (g.train + t.through + s.through) + t.forward + 5 * s.train  # the pool is answered once


def test_settings_that_do_not_fit(teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match="per_batch must divide kd_steps=20, got 3"):
        fit(fast_dfkd(5e-3, per_batch=3), teacher, range(1))
    with pytest.raises(ValueError, match="unknown meta='sgd'"):
        fit(fast_dfkd(5e-3, meta="sgd"), teacher, range(1))


@pytest.mark.parametrize("method", ["fast_dfkd", "cmi"])
def test_a_teacher_without_batch_norm_is_refused_before_anything_runs(method: str) -> None:
    assert not faults(composed(f"method={method}", "teacher.net.batch_norm=true"))
    (fault,) = faults(composed(f"method={method}", "teacher=small_conv"))
    assert "reads the teacher's batch-norm statistics, but SmallConvNet" in fault


ROUNDS = {
    "fast_dfkd": ("method.warmup=0", "method.steps=2", "method.kd_steps=6", "method.batch_size=16"),
    "cmi": ("method.steps=4", "method.bank_size=64", "method.kd_steps=6", "method.batch_size=16"),
    "adaptive_deep_inversion": ("method.steps=4", "method.kd_steps=6", "method.inverted=16"),
}
"""A few steps of each method whose epoch is one round of its paper, 16 images and 6 student steps."""


@pytest.mark.parametrize("method", ROUNDS)
@pytest.mark.parametrize("setting", ["data=mnist", "data=digits", "data=cifar10", "data=svhn", "scale=paper"])
def test_no_file_says_how_long_a_round_is_a_second_time(method: str, setting: str) -> None:
    assert not faults(composed(f"method={method}", "teacher.net.batch_norm=true", setting))


@pytest.mark.slow
@pytest.mark.parametrize("method", ROUNDS)
def test_the_number_of_rounds_is_that_of_epochs(method: str, tiny: Any) -> None:
    """Whatever the length of a round, and however it is cut into batches."""
    generator = () if method == "adaptive_deep_inversion" else ("method.generator.ngf=4", "method.latent=8")
    pool = ("teacher.net.batch_norm=true", "method.per_batch=2", "method.kd_batch_size=16")
    settings = (*pool, *ROUNDS[method], *generator)
    result = tiny(f"method={method}", *settings)
    assert result["cost"]["images_synthesised"] == 2 * 16
    (fault,) = faults(composed(f"method={method}", *settings, "source.rounds=6"))
    assert fault.startswith("source.rounds=6: an epoch of ")
    assert "set source.rounds=null" in fault


def test_other_methods_are_told_how_many_rounds_an_epoch_has() -> None:
    (fault,) = faults(composed("method=dafl", "source.rounds=null"))
    assert fault.startswith("source.rounds: required, for Dafl does not say")
