"""CMI: a new generator for every batch, images told apart, a bank without holes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import cmi
from test_rounds import state
from torch import nn
from torch.nn import functional as F
from toy import fit, trained_teacher

from kd_lightning.core.feature_hooks import capture
from kd_lightning.core.image_buffer import ImageBuffer
from kd_lightning.errors import ConfigError
from kd_lightning.losses.adversarial import masked_kl
from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.contrastive import info_nce
from kd_lightning.methods.base.statistics import Best
from kd_lightning.methods.data_free.channel_exchange import exchange_channels
from kd_lightning.methods.data_free.cmi import Cmi, pooled_maps

B = 64


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher(batch_norm=True)


@pytest.mark.slow
def test_the_order_of_a_round(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 steps of the generator in two training batches, 40 of the student in four."""
    done: list[str] = []
    for letter, name in {"b": "begin", "g": "synthesise", "c": "commit", "s": "distil"}.items():
        action = getattr(Cmi, name)
        monkeypatch.setattr(Cmi, name, lambda self, a=action, k=letter: (done.append(k), a(self))[1])
    method = fit(cmi(1e-2), teacher, range(8), batch_norm=True)
    one = "b" + 20 * "g" + "c" + 4 * "s"
    assert "".join(done) == one + one[:-4]
    assert method.student_updates(8) == 40
    assert method.images_made == len(method.pool) == len(method.bank) == 2 * B


def test_making_images_leaves_the_student_alone(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    synthesise = Cmi.synthesise

    def spying(self: Cmi) -> Any:
        before = state(self.student)
        losses = synthesise(self)
        assert state(self.student) == before
        assert not any(p.grad is not None for p in self.student.parameters())
        seen.append(before)
        return losses

    monkeypatch.setattr(Cmi, "synthesise", spying)
    student = fit(cmi(1e-2), teacher, range(2), batch_norm=True).student
    assert len(seen) == 20
    assert student.training
    assert all(p.requires_grad for p in student.parameters())


def test_the_losses_of_a_step(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bank that holds one batch; the local view is fixed, so that it can be seen again."""
    terms: list[dict[str, float]] = []
    given: list[dict[str, torch.Tensor]] = []
    synthesise = Cmi.synthesise

    def local(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return x.flip(2)

    def spying(self: Cmi) -> Any:
        with torch.no_grad():
            x = self.generator(self.z)
            with BatchNormTap(teacher) as tap, capture(teacher, inputs=self.taps) as maps:
                t = teacher(x)
            global_ = pooled_maps(maps)
            with capture(teacher, inputs=self.taps) as maps:
                teacher(x.flip(2))
            rows = torch.cat([pooled_maps(maps), global_], 1)
            if len(self.bank):
                rows = torch.cat([rows, self.bank.rows])
            query, key = (F.normalize(self.head(half)) for half in rows.chunk(2, 1))
            given.append(
                {
                    "bn": batch_norm_statistics(tap.statistics, tap.layers),
                    "oh": F.cross_entropy(t, self.y),
                    "adv": 0.5 * masked_kl(self.student(x), t),
                    "cr": 0.8 * info_nce(query, key, temperature=0.1, fresh=B),
                }
            )
        losses = synthesise(self)
        terms.append({k: v.item() for k, v in losses.items()})
        return losses

    monkeypatch.setattr(Cmi, "synthesise", spying)
    make = cmi(1e-2, steps=10, kd_steps=10, negatives=1000)
    make.keywords["local"] = (local,)
    fit(make, teacher, range(3))
    for got, wanted in (terms[0], given[0]), (terms[-1], given[-1]):
        for name, loss in wanted.items():
            assert got[name] == pytest.approx(loss.item(), rel=1e-3, abs=1e-5), name
    assert terms[-1]["cr"] > 0


def test_every_batch_has_a_new_generator_and_the_head_stays(
    teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, int, str]] = []
    begin = Cmi.begin

    def spying(self: Cmi) -> None:
        head = state(self.head)
        begin(self)
        assert state(self.head) == head
        seen.append((self.generator.project.weight.clone(), len(self.opts()[1].optimizer.state), head))

    monkeypatch.setattr(Cmi, "begin", spying)
    fit(cmi(1e-2, kd_steps=10), teacher, range(7))
    (first, _, head), (second, moments, other), _ = seen
    for weight in (first, second):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (first - second).std().item() == pytest.approx(0.02 * 2**0.5, rel=0.1)
    assert moments == 0
    assert head != other


def test_latents_and_head_learn(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    begin, commit = Cmi.begin, Cmi.commit

    def beginning(self: Cmi) -> None:
        begin(self)
        seen.update(z=self.z.detach().clone(), head=state(self.head))

    def committing(self: Cmi) -> None:
        assert not torch.equal(self.z, seen["z"])
        assert state(self.head) != seen["head"]
        seen["done"] = True
        commit(self)

    monkeypatch.setattr(Cmi, "begin", beginning)
    monkeypatch.setattr(Cmi, "commit", committing)
    fit(cmi(1e-2), teacher, range(2))
    assert seen["done"]


@pytest.mark.slow
def test_the_bank_never_returns_what_was_not_written(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, in and after the round that fills it, where the authors' returns nothing and the loss is NaN."""
    sizes: list[tuple[int, int, bool]] = []
    cached = Cmi.cached

    def spying(self: Cmi, like: torch.Tensor) -> Any:
        local, global_ = cached(self, like)
        rows = torch.cat([local, global_], 1)
        written = {tuple(row) for row in self.bank.rows.tolist()} if len(self.bank) else set()
        held = all(tuple(row) in written for row in rows.tolist())
        distinct = len(rows.unique(dim=0)) == len(rows)
        sizes.append((len(self.bank), len(local), held and distinct))
        return local, global_

    monkeypatch.setattr(Cmi, "cached", spying)
    method = fit(cmi(1e-2, steps=10, kd_steps=10), teacher, range(10))
    assert [(n, k) for n, k, _ in sizes[::10]] == [(0, 0), (64, 64), (128, 100), (128, 100), (128, 100)]
    assert all(right for *_, right in sizes)
    assert torch.isfinite(torch.cat([p.flatten() for p in method.head.parameters()])).all()
    assert isinstance(method.bank, ImageBuffer)


def test_features_can_be_named(teacher: nn.Module) -> None:
    make = cmi(1e-2, features=("net.head",))
    method = fit(make, teacher, range(1))
    assert method.head[0].in_features == 32
    with pytest.raises(ValueError, match=r"no module net.layer1"):
        fit(cmi(1e-2, features=("net.layer1",)), teacher, range(1))


def test_the_best_of_the_steps_is_kept() -> None:
    best = Best()
    for loss, value in ((3.0, 0), (1.0, 1), (float("nan"), 2), (1.0, 3), (2.0, 4)):
        best.offer(torch.tensor(loss), torch.full((2,), value))
    assert best.kept[0].item() == 1.0
    assert best.kept[1].tolist() == [1, 1]


def test_settings_that_do_not_fit(teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match="per_batch must divide steps=25, got 10"):
        fit(cmi(1e-2, steps=25), teacher, range(1))


def test_exchanged_channels() -> None:
    """Half of each row's channels are its own, half those of the row opposite, at their places."""
    rng = torch.Generator().manual_seed(0)
    maps = torch.arange(7 * 6).float().view(7, 6, 1, 1).expand(7, 6, 2, 3).clone().requires_grad_()
    mixed = exchange_channels(maps, rng)
    assert mixed.shape == maps.shape
    own = (mixed == maps).flatten(2).all(2)
    opposite = (mixed == maps.flip(0)).flatten(2).all(2)
    assert (own | opposite).all()
    rows = [0, 1, 2, 4, 5, 6]  # the one in the middle is its own opposite
    assert own.sum(1)[rows].tolist() == [3] * 6
    assert own[3].all()
    assert len({tuple(row) for row in own[rows].tolist()}) > 1
    (weights := torch.rand(mixed.shape, generator=rng)).mul(mixed).sum().backward()
    wanted = torch.where(own[..., None, None], weights, 0) + torch.where(own[..., None, None], 0, weights).flip(0)
    assert maps.grad is not None
    wanted[3] = weights[3]
    torch.testing.assert_close(maps.grad, wanted)


def test_an_exchange_with_itself_changes_nothing() -> None:
    maps = torch.randn(1, 5, 4, 4).expand(6, -1, -1, -1)
    assert torch.equal(exchange_channels(maps, torch.Generator().manual_seed(1)), maps)


def test_images_are_rendered_from_the_maps_that_made_them(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator is kept; without a share of exchanged steps each image is its own."""
    kept: list[bool] = []
    begin = Cmi.begin

    def spying(self: Cmi) -> None:
        before = self.generator.project.weight.clone()
        begin(self)
        kept.append(torch.equal(self.generator.project.weight, before))

    monkeypatch.setattr(Cmi, "begin", spying)
    method = fit(cmi(1e-2, steps=10, kd_steps=10, exchange=1.0), teacher, range(4))
    assert kept == [False, True]
    assert len(method.maps) == len(method.pool) == 2 * B
    assert method.maps.rows.dtype == torch.float16
    seen: list[torch.Tensor] = []
    render = method.generator.render
    monkeypatch.setattr(method.generator, "render", lambda maps: (seen.append(maps), render(maps))[1])
    rows = method.maps.rows.float()
    for share in 1.0, 0.0:
        method.exchange = share or 1e-9
        assert method.draw(8).shape == (8, 1, 8, 8)
        known = [any(torch.equal(one, row) for row in rows) for one in seen[-1]]
        assert known == [not share] * 8


def test_an_exchange_needs_a_generator_with_maps(teacher: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"method\.exchange=1\.5"):
        fit(cmi(1e-2, exchange=1.5), teacher, range(1))
    make = cmi(1e-2, exchange=0.7)
    make.keywords["generator"] = nn.Linear(16, 64)
    with pytest.raises(ConfigError, match=r"Linear has no methods maps"):
        fit(make, teacher, range(1))
