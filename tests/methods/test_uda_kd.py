"""Joint distillation and adaptation: whose step moves whom, in which mode, by which weights."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import two_domains, uda_kd
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from toy import CLASSES, adam, fit, network, patterns, sgd, trained_teacher, trainer

from kd_lightning.core.tasks import Classification
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.losses.domains import ramp
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.domain_adaptation.alignment import both
from kd_lightning.methods.domain_adaptation.dan import Dan
from kd_lightning.methods.domain_adaptation.uda_kd import UdaKd
from kd_lightning.teachers.white_box import FrozenTeacher

HEAVY: dict[str, Any] = dict.fromkeys(("optimizer", "optimizer_t"), partial(sgd, lr=0.01, weight_decay=0.1))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher(batch_norm=True)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def trained(
    teacher: nn.Module, *, epochs: int = 1, batch_norm: bool = True, loader: Any = None, **settings: Any
) -> UdaKd:
    loader = two_domains(teacher) if loader is None else loader
    method = fit(uda_kd(**settings), teacher, loader, epochs=epochs, batch_norm=batch_norm)
    assert isinstance(method, UdaKd)
    return method


def test_a_copy_is_adapted_and_the_teacher_keeps_its_bits(teacher: nn.Module) -> None:
    before = state(teacher)
    method = trained(teacher)
    assert same(before, state(teacher))
    assert not teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not same(before, state(method.adapted))
    assert method.trains == {"teacher"}


def test_the_copy_starts_from_the_teacher_or_from_a_network_as_it_is_made(teacher: nn.Module) -> None:
    still: dict[str, Any] = {"beta": (1.0, 1.0), "growth": "constant"}
    assert same(_learnt(teacher), _learnt(trained(teacher, **still).adapted))
    fresh = network((16, 32), batch_norm=True).net
    method = trained(teacher, teacher_init="scratch", network=fresh, **still)
    assert method.adapted.net is fresh
    assert torch.equal(method.adapted.mean, teacher.mean)  # type: ignore[arg-type]
    assert not same(_learnt(teacher), _learnt(method.adapted))


def _learnt(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


class Steps:
    """What every update moved: (parameters of the teacher's copy, of the student)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved: list[tuple[bool, bool]] = []
        update = Distiller.update

        def spied(method: Any, opt: Any, loss: Tensor) -> None:
            before = [_learnt(net) for net in (method.adapted, method.student)]
            update(method, opt, loss)
            after = [_learnt(net) for net in (method.adapted, method.student)]
            self.moved.append(tuple(not same(a, b) for a, b in zip(before, after, strict=True)))  # type: ignore[arg-type]

        monkeypatch.setattr(Distiller, "update", spied)


@pytest.mark.parametrize(("variant", "second"), [("paper", (False, True)), ("code", (True, True))])
def test_each_step_moves_its_own_network_by_decay_or_otherwise(
    variant: Any, second: tuple[bool, bool], teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the authors' second step moves the teacher, too, whose logits it does not detach."""
    steps = Steps(monkeypatch)
    trained(teacher, variant=variant, **HEAVY)
    assert steps.moved == [(True, False), second] * 8


@pytest.mark.parametrize("alignment", ["mmd", "grl"])
def test_at_either_end_of_beta_one_network_stands_still(
    alignment: Any, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    method = trained(teacher, epochs=2, beta=(0.0, 1.0), growth="step", alignment=alignment, **HEAVY)
    assert steps.moved == [(True, False)] * 8 + [(False, True)] * 8
    assert method.student_updates(16) == 8


class Watch(Callback):
    """Modes and terms of every round."""

    def __init__(self) -> None:
        self.modes: list[bool] = []
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.modes.append(all(m.training for net in (pl_module.adapted, pl_module.student) for m in net.modules()))
        self.terms.append(dict(pl_module.latest))


def test_networks_are_in_training_mode_after_a_validation_and_the_domains_still_differ(teacher: nn.Module) -> None:
    """The authors' test leaves the networks in eval mode: no MMD and no target logits from the second epoch on."""
    torch.manual_seed(0)
    given = {"student": network((8, 16), batch_norm=True), "teacher": FrozenTeacher(teacher)}
    method = uda_kd()(**given, task=Classification(CLASSES), log_every=1)
    method.train()
    images, labels = patterns(64, seed=5)
    val, watch = TensorLoader((images * 255).byte(), labels, batch_size=64, shuffle=False), Watch()
    trainer(3, callbacks=[watch]).fit(method, Images(two_domains(teacher), val))
    assert all(watch.modes)
    assert all(term["train/mmd"] > 0 for term in watch.terms[8:])
    assert all(term["train/kd"] > 0 for term in watch.terms)
    assert [round(term["train/beta"], 6) for term in watch.terms[::8]] == pytest.approx(
        [0.1 * 9 ** (e / 3) for e in range(3)], abs=1e-5
    )


def test_without_labels_weight_nothing_of_them_reaches_the_student(teacher: nn.Module) -> None:
    """With alpha = 1, and a teacher that stands still."""

    def learnt(alpha: float, *, shuffled: bool) -> dict[str, Tensor]:
        loader = two_domains(teacher)
        if shuffled:
            assert loader.labelled.labels is not None
            loader.labelled.labels = loader.labelled.labels.flip(0)
        return state(trained(teacher, loader=loader, alpha=alpha, beta=(1.0, 1.0), growth="constant").student)

    assert same(learnt(1.0, shuffled=False), learnt(1.0, shuffled=True))
    assert not same(learnt(0.3, shuffled=False), learnt(0.3, shuffled=True))


def test_the_code_swaps_the_arguments_of_the_divergence(teacher: nn.Module) -> None:
    s, t = torch.randn(2, 8, CLASSES).double()
    forward = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()
    reverse = (s.softmax(1) * (s.log_softmax(1) - t.log_softmax(1))).sum(1).mean()
    assert abs(float(forward - reverse)) > 1e-2
    for variant, value in {"paper": forward, "code": reverse}.items():
        method = uda_kd(variant=variant, temperature=1.0)(
            student=network((8, 16)), teacher=FrozenTeacher(teacher), task=Classification(CLASSES)
        )
        assert float(method.imitate(s, t)) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_gamma_follows_the_run_and_in_the_code_each_epoch(
    variant: Any, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(
        "kd_lightning.methods.domain_adaptation.uda_kd.ramp",
        lambda progress: (seen.append(progress), ramp(progress))[1],
    )
    trained(teacher, epochs=2, variant=variant)
    run, epoch = [k / 16 for k in range(1, 17)], [k / 8 for k in range(1, 9)] * 2
    assert seen == pytest.approx(run if variant == "paper" else epoch)


def test_separate_passes_use_each_domains_own_statistics() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(8, 1, 8, 8), 0.5 * torch.rand(6, 1, 8, 8)
    for batch_norm in (False, True):
        net = network((8, 16), batch_norm=batch_norm).train()
        apart, together = (both(net, x, y, passes) for passes in ("separate", "concat"))
        assert [each.shape for each in together] == [each.shape for each in apart]
        assert torch.allclose(apart.target, together.target, atol=1e-5) != batch_norm
        assert torch.allclose(apart.source, net(x), atol=1e-6)
        torch.testing.assert_close(net.net.head(apart.target_features), apart.target)  # type: ignore[operator]


def test_the_discriminator_has_no_batch_norm_and_learns_with_the_copy(
    teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    update = Distiller.update
    monkeypatch.setattr(
        Distiller, "update", lambda method, *given: (update(method, *given), seen.append(_learnt(method.discriminator)))
    )
    method = trained(teacher, alignment="grl")
    assert method.discriminator is not None
    assert not any(isinstance(module, _BatchNorm) for module in method.discriminator.modules())
    adapted, distilled = seen[::2], seen[1::2]
    assert all(same(a, b) for a, b in zip(adapted, distilled, strict=True))
    assert not any(torch.equal(a[k], b[k]) for a, b in pairwise(adapted) for k in a)


def test_adapting_the_student_itself_makes_its_features_alike(teacher: nn.Module) -> None:
    """Without the MMD's gradient the domains stay further apart."""
    served = two_domains(teacher)
    images, dark = (each.images[:256].float() / 255 for each in (served.labelled, served.unlabelled))

    def apart(weight: float) -> float:
        def make(**given: Any) -> Distiller:
            method = Dan(optimizer=partial(adam, lr=5e-3), **given)
            if not weight:
                method.gathered = Tensor.detach  # type: ignore[method-assign]
            return method

        method = fit(make, teacher, two_domains(teacher), epochs=4)
        with torch.no_grad():
            seen = both(copy.deepcopy(method.student).eval(), images, dark)
        a, b = (each.mean(0) for each in (seen.source_features, seen.target_features))
        return float((a - b).norm() / torch.cat([seen.source_features, seen.target_features]).std(0).norm())

    assert apart(1.0) < 0.6 * apart(0.0)
