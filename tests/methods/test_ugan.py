"""UGAN and its halves: step for step with loops written down here, who moves in which step, and what is refused."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from cases import few_streams, ugan
from torch import Tensor, nn
from torch.nn import functional as F
from toy import CLASSES, fit, network, patterns, sgd, trained_teacher

from kd_lightning.core.tasks import Classification
from kd_lightning.data.batches import StreamsBatch
from kd_lightning.errors import ConfigError
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.semi_supervised.pair_monitor import PairMonitor
from kd_lightning.methods.semi_supervised.ugan import Ugan
from kd_lightning.networks import head_of
from kd_lightning.networks.classifiers.noisy import NoisyMlp
from kd_lightning.networks.normalized import Normalized

PLAYERS = ("classifier", "discriminator", "generator", "bad_generator")


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher()


def made(teacher: nn.Module, *, epochs: int = 0, **settings: Any) -> Ugan:
    torch.manual_seed(0)
    method = fit(ugan(**settings), teacher, few_streams(teacher), epochs=epochs) if epochs else None
    if method is None:
        build = ugan(**settings)
        method = build(student=network((8, 16)), teacher=None, task=Classification(CLASSES))
    assert isinstance(method, Ugan)
    return method


def states(method: Ugan) -> dict[str, dict[str, Tensor]]:
    return {name: copy.deepcopy(getattr(method, name).state_dict()) for name in (*PLAYERS, "student")}


class Loop:
    """The players of a method trained by a loop of three or two steps, without the library's losses."""

    def __init__(self, method: Ugan, rng: torch.Generator) -> None:
        self.rng = rng
        self.c, self.d, self.g, self.b = (copy.deepcopy(getattr(method, name)) for name in PLAYERS)
        nets = (self.c, self.d, self.g, self.b)
        self.oc, self.od, self.og, self.ob = (torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in nets)
        self.n, self.split = method.made, (method.d_labelled, method.d_unlabelled)

    def z(self) -> Tensor:
        return torch.rand(self.n, 16, generator=self.rng)

    def y(self) -> Tensor:
        return ((torch.arange(self.n) + torch.rand((), generator=self.rng)) / self.n * CLASSES).long()

    def triple_gan(self, batch: StreamsBatch) -> None:
        (x_l, y_l, *_), x = batch.labelled, batch.unlabelled.x
        x_u, x_ud = x[: len(x) - self.split[1]], x[len(x) - self.split[1] :]
        y_g = self.y()
        x_g = self.g(self.z(), y_g)
        with torch.no_grad():
            hat = self.c(x_u).argmax(1), self.c(x_ud).argmax(1)
        k = self.split[0]
        real = self.d(torch.cat([x_l[:k], x_ud]), torch.cat([y_l[:k], hat[1]]))
        bce = F.binary_cross_entropy_with_logits
        fake, of_c = self.d(x_g.detach(), y_g), self.d(x_u, hat[0])
        loss = bce(real, torch.ones_like(real)) + 0.5 * bce(fake, torch.zeros_like(fake))
        step(self.od, loss + 0.5 * bce(of_c, torch.zeros_like(of_c)))
        fooled = self.d(x_g, y_g)
        step(self.og, 0.5 * bce(fooled, torch.ones_like(fooled)))
        y_g = self.y()
        x_g = self.g(self.z(), y_g).detach()
        p = self.c(x_u).softmax(1)
        with torch.no_grad():
            cost = bce(u := self.d(x_u, p.argmax(1)), torch.ones_like(u), reduction="none")
        entropy, balance = -(p * p.log()).sum(1).mean(), -p.mean(0).log().mean()
        loss = F.cross_entropy(self.c(x_l), y_l) + 0.3 * entropy + 1e-3 * balance
        loss = loss + 0.005 * (p.max(1).values * cost).mean() + 0.1 * F.cross_entropy(self.c(x_g), y_g)
        step(self.oc, loss)

    def bad_gan(self, batch: StreamsBatch) -> None:
        (x_l, y_l, *_), x = batch.labelled, batch.unlabelled.x
        x_u = x[: len(x) - self.split[1]]
        x_b = self.b(self.z()).detach()
        on_u, on_b = self.c(x_u), self.c(x_b)
        p = on_u.softmax(1)
        real, fake = on_u.logsumexp(1), on_b.logsumexp(1)
        loss = (
            F.cross_entropy(self.c(x_l), y_l) + 0.5 * (F.softplus(real) - real).mean() + 0.5 * F.softplus(fake).mean()
        )
        step(self.oc, loss - 0.3 * (p * p.log()).sum(1).mean() - 1e-3 * p.mean(0).log().mean())
        f = [self.features(each).mean(0) for each in (self.b(self.z()), x_u)]
        step(self.ob, (f[0] - f[1].detach()).abs().mean())

    def features(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        hook = self.c.get_submodule(head_of(self.c)).register_forward_pre_hook(lambda _, args: found.append(args[0]))
        self.c(x)
        hook.remove()
        return found[0]


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("half", "settings", "moved"),
    [("triple_gan", {"lambda_b": 0.0}, "cdg"), ("bad_gan", {"lambda_g": 0.0}, "cb")],
)
def test_each_half_equals_its_own_trainer_step_for_step(
    half: str, settings: dict[str, Any], moved: str, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: list[Loop] = []

    def beside(self: Ugan, batch: StreamsBatch, batch_idx: int, *, own: Any = Ugan.training_step) -> None:
        if not loops:
            loops.append(Loop(self, torch.Generator()))
        loops[0].rng.set_state(self.rng.get_state())
        own(self, batch, batch_idx)
        getattr(loops[0], half)(batch)
        for name, theirs in zip("cdgb", (loops[0].c, loops[0].d, loops[0].g, loops[0].b), strict=True):
            ours = getattr(self, PLAYERS["cdgb".index(name)])
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

    monkeypatch.setattr(Ugan, "training_step", beside)
    plain = dict.fromkeys(("optimizer", "optimizer_d", "optimizer_g", "optimizer_b"), partial(sgd, lr=0.05))
    settings = settings | plain  # Adam would make a step of any rounding
    start = states(made(teacher, **settings))
    end = states(made(teacher, epochs=2, **settings))
    for letter, name in zip("cdgb", PLAYERS, strict=True):
        same = all(torch.equal(start[name][k], end[name][k]) for k in start[name])
        assert same == (letter not in moved), name


def test_each_step_moves_its_own_player_only(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    update, order = Distiller.update, []

    def spied(self: Any, opt: Any, loss: Tensor) -> None:
        for net in (getattr(self, name) for name in PLAYERS):
            net.zero_grad()
        before = states(self)
        update(self, opt, loss)
        after = states(self)
        weights = {name: [k for k, _ in getattr(self, name).named_parameters()] for name in PLAYERS}
        (moved,) = [n for n in PLAYERS if not all(torch.equal(before[n][k], after[n][k]) for k in weights[n])]
        others = [n for n in PLAYERS if any(p.grad is not None for p in getattr(self, n).parameters())]
        assert others == [moved]
        order.append(moved)

    monkeypatch.setattr(Distiller, "update", spied)
    method = made(teacher, epochs=1, manifold=1e-3, pull_away=0.8, consistency=1.0, consistency_ramp=1, b_unlabelled=8)
    assert order[:4] == ["discriminator", "generator", "classifier", "bad_generator"]
    assert not any(p.requires_grad for p in method.student.parameters())
    assert all(p.requires_grad for name in PLAYERS for p in getattr(method, name).parameters())


def test_the_student_is_the_average_of_the_classifier(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    keep = Ugan.keep

    def watched(self: Ugan) -> None:
        if not kept:
            kept.append(next(iter(made(teacher).student.parameters())).clone())
        keep(self)
        kept[0] = 0.5 * kept[0] + 0.5 * next(iter(self.classifier.parameters())).detach()

    monkeypatch.setattr(Ugan, "keep", watched)
    method = made(teacher, epochs=2, ema=0.5)
    torch.testing.assert_close(next(iter(method.student.parameters())), kept[0])
    assert not torch.equal(next(iter(method.student.parameters())), next(iter(method.classifier.parameters())))
    bare = made(teacher, epochs=1, ema=None)
    assert bare.student is bare.classifier


def test_only_the_classifier_learns_at_first(teacher: nn.Module) -> None:
    start, end = states(made(teacher)), states(made(teacher, epochs=1, pretrain=1))
    for name in PLAYERS:
        same = all(torch.equal(start[name][k], end[name][k]) for k in start[name])
        assert same == (name != "classifier"), name


def test_good_images_count_from_their_epoch_on(teacher: nn.Module) -> None:
    late, never = (made(teacher, epochs=2, good=0.1, good_from=start) for start in (1, 9))
    assert late.images_made - never.images_made == len(few_streams(teacher)) * never.made
    assert "train/good" in late.latest
    assert "train/good" not in never.latest


def test_made_labels_are_balanced_or_follow_the_prior(teacher: nn.Module) -> None:
    method = made(teacher)
    method.reseed(0)
    counts = torch.stack([method.labels(10).bincount(minlength=CLASSES) for _ in range(40)])
    assert set(counts.flatten().tolist()) == {2, 3}
    assert counts.float().mean(0).sub(2.5).abs().max() < 0.3
    skewed = made(teacher, prior=[6.0, 2.0, 1.0, 1.0])
    skewed.reseed(0)
    assert skewed.labels(100).bincount(minlength=CLASSES).tolist() in [
        [60, 20, 10, 10],
        [60, 20, 9, 11],
        [60, 20, 11, 9],
    ]
    with pytest.raises(ValueError, match="prior has 2 shares for 4 classes"):
        made(teacher, prior=[0.5, 0.5])


def test_labels_of_the_unlabelled_stream_are_never_read(teacher: nn.Module) -> None:
    loader = few_streams(teacher)
    assert next(iter(loader)).unlabelled.y is None


def test_batch_norm_in_the_student_is_refused() -> None:
    with pytest.raises(ValueError, match="no student with batch norm: use student=noisy_mlp"):
        ugan()(student=network((8, 16), batch_norm=True), teacher=None, task=Classification(CLASSES))


def test_slices_are_apart_and_leave_something(teacher: nn.Module) -> None:
    method = made(teacher, d_unlabelled=8, b_unlabelled=4)
    x = torch.arange(20.0).view(20, 1, 1, 1)
    u, ud, ub = method.slices(x)
    assert torch.equal(torch.cat([u, ud, ub]), x)
    assert (len(u), len(ud), len(ub)) == (8, 8, 4)
    with pytest.raises(ConfigError, match=r"unlabelled_batch_size=12: .* set at least source.unlabelled_batch_size=13"):
        method.slices(x[:12])
    method.slices(x[:13])
    both = made(teacher, d_unlabelled=8, b_unlabelled=0).slices(x)
    assert both[2] is both[0]


def test_every_pair_with_integrate(teacher: nn.Module) -> None:
    method = made(teacher, adversarial="integrate")
    x, logits = patterns(5, seed=1)[0], torch.randn(5, CLASSES)
    said = method.scores(x, logits)
    for k in range(CLASSES):
        torch.testing.assert_close(said[:, k], method.discriminator(x, torch.full((5,), k)))
    trained = made(teacher, epochs=1, adversarial="integrate")
    assert trained.latest["train/d"] > 0


def test_how_real_images_are_is_watched(teacher: nn.Module) -> None:
    seen = made(teacher, epochs=2).latest
    assert 0 < seen["train/p_bad"] < 1
    assert 0 < seen["train/p_real"] < 1
    assert {"train/on_real", "train/on_made"} < seen.keys()


def test_a_discriminator_that_wins_everything_is_said_once() -> None:
    real, fake = torch.ones(4), -torch.ones(4)
    monitor = PairMonitor(rounds=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            monitor.add(real, fake)
        monitor.tell(5)
        monitor.add(real, fake.neg())
        for _ in range(9):
            monitor.add(real, fake)
        monitor.tell(5)
    monitor.add(real, fake)
    again = PairMonitor(rounds=10)
    again.load_state_dict(monitor.state_dict())
    with pytest.warns(UserWarning, match=r"told every real pair .* for 10 rounds: .* Lower method.optimizer_d.lr"):
        again.tell(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            again.add(real, fake)
        again.tell(5)


def test_what_a_teacher_adds(teacher: nn.Module) -> None:
    kd = {"kd_good": 1.0, "kd_bad": 1.0, "kd_unlabelled": 1.0}
    method = made(teacher, epochs=1, good_from=9, **kd)
    rounds = len(few_streams(teacher))
    assert {f"train/{name}" for name in kd} < method.latest.keys()
    assert method.teacher is not None
    b = method.made
    assert method.teacher.asked == rounds * (2 * b + 64 - method.d_unlabelled)
    assert "teacher" in Ugan.needs(kd_bad=0.1)
    assert "teacher" not in Ugan.needs(kd_bad=0.0)
    none = made(teacher, epochs=1)
    assert none.teacher is not None
    assert none.teacher.asked == 0


def test_imitation_counts_what_the_teacher_confirms(teacher: nn.Module) -> None:
    method = made(teacher, kd_good=1.0)
    method.teacher = lambda x: teacher(x)  # type: ignore[assignment]
    x, y = patterns(32, seed=5)
    s = torch.randn(32, CLASSES)
    right = method.imitate(x, s, y)
    half = y.clone()
    half[:16] = (half[:16] + 1) % CLASSES
    assert method.imitate(x, s, (y + 1) % CLASSES) == 0
    assert 0 < method.imitate(x, s, half) < right


def test_noise_is_that_of_training_only() -> None:
    torch.manual_seed(0)
    net = Normalized(NoisyMlp(num_classes=CLASSES, size=8, widths=(16, 8)), mean=[0.5], std=[0.3])
    x = patterns(4, seed=0)[0]
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
