"""ZSKT: ten student steps on the pseudo-batch the generator has just stepped on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import zskt
from conftest import composed
from torch import Tensor, nn
from toy import fit, generator, trained_teacher

from kd_lightning.config.check import faults
from kd_lightning.core.feature_hooks import capture
from kd_lightning.losses.adversarial import attention_transfer
from kd_lightning.losses.response import kl
from kd_lightning.methods.base.distiller import Distiller
from kd_lightning.methods.data_free.zskt import Zskt


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher()


@pytest.fixture
def terms(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    seen: dict[str, float] = {}
    monkeypatch.setattr(Zskt, "record", lambda self, **terms: seen.update({k: v.item() for k, v in terms.items()}))
    return seen


def still(**settings: Any) -> Any:
    """One round that leaves the student as it was, so that its losses can be computed again."""
    make = zskt(1e-3)
    make.keywords["optimizer"].keywords["lr"] = 0.0
    make.keywords.update(settings)
    return make


def test_the_student_sees_one_pseudo_batch_ten_times(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    latents: list[Tensor] = []
    images: list[Tensor] = []
    made = generator(tail="bn")
    made.register_forward_pre_hook(lambda _module, args: latents.append(args[0]))

    def start(self: Any) -> None:
        self.student.register_forward_pre_hook(lambda _module, args: images.append(args[0]))

    monkeypatch.setattr(Distiller, "on_fit_start", start, raising=False)
    fit(still(generator=made), teacher, range(2))
    assert len(latents) == 4, "once for the generator's step, once for all of the student's"
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[2], latents[3])
    assert not torch.equal(latents[0], latents[2])
    assert len(images) == 22
    first, *rest = images[:11]
    assert all(torch.equal(rest[0], x) for x in rest)
    assert not torch.equal(first, rest[0]), "rendered again by the generator that has just stepped"
    assert first.requires_grad
    assert not any(x.requires_grad for x in rest)


@pytest.mark.parametrize(("variant", "reduction"), [("code", "mean"), ("paper", "batchmean")])
def test_the_divergence(variant: str, reduction: Any, teacher: nn.Module, terms: dict[str, float]) -> None:
    method = fit(still(variant=variant), teacher, range(1))
    assert method.seen is not None
    with torch.no_grad():
        wanted = kl(method.student(method.seen.images), teacher(method.seen.images), reduction=reduction)
    assert terms["kl"] == pytest.approx(wanted.item(), rel=1e-4)
    assert "at" not in terms


def test_attention_compares_the_maps_of_the_blocks(teacher: nn.Module, terms: dict[str, float]) -> None:
    blocks = ("net.features.1", "net.features.4")
    method = fit(still(blocks=blocks), teacher, range(1))
    assert method.seen is not None
    maps = []
    for net in (method.student, teacher):
        with torch.no_grad(), capture(net, outputs=blocks) as taps:
            net(method.seen.images)
        maps.append([taps[block] for block in blocks])
    assert terms["at"] == pytest.approx(250 * attention_transfer(*maps).item(), rel=1e-4)


def test_attention_reaches_the_student(teacher: nn.Module) -> None:
    make = zskt(1e-3)
    make.keywords.update(blocks=("net.features.1",), variant="paper")
    with_it = fit(make, teacher, range(1)).student
    make.keywords.update(generator=generator(tail="bn"), beta=0.0)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(with_it.parameters(), fit(make, teacher, range(1)).student.parameters(), strict=True)
    )


def test_both_gradients_are_clipped(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    update = Distiller.update

    def updating(self: Any, opt: Any, loss: Tensor) -> None:
        update(self, opt, loss)
        gradients = [p.grad for p in opt.param_groups[0]["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    monkeypatch.setattr(Distiller, "update", updating)
    fit(still(clip=1e-4, variant="paper"), teacher, range(1))
    assert norms == pytest.approx([1e-4] * 11, rel=0.05)
    norms.clear()
    fit(still(clip=5.0, generator=generator(tail="bn")), teacher, range(1))
    assert max(norms) <= 5.0
    assert max(norms) > 2e-4


def test_blocks_that_a_network_does_not_have_are_named_before_anything_is_built() -> None:
    found = faults(composed("problem=cifar10", "scale=paper", "method=zskt"))
    nets, blocks = ("student", "teacher.net"), (1, 2, 3)
    wrong = [f"method.blocks: ResNet ({net}) has no net.block{n}" for net in nets for n in blocks]
    assert [fault.partition("; ")[0] for fault in found] == wrong
    assert "net.layer1, net.layer2" in found[0]
    assert "method.blocks=[]" in found[0]
    assert not faults(composed("problem=cifar10", "scale=paper", "method=zskt", "method.blocks=[]"))
    (fault, _) = faults(composed("problem=cifar10_wrn", "method=zskt", "scale=paper", "method.blocks=[net.blok2]"))
    assert "WideResNet (student) has no net.blok2; did you mean net.block2?" in fault
    (fault,) = faults(composed("problem=cifar10", "scale=paper", "method=cmi", "method.features=[net.layer9]"))
    assert fault.startswith("method.features: ResNet (teacher.net) has no net.layer9; did you mean net.layer")


def test_a_fused_optimiser_whose_gradient_is_clipped_is_named_in_mixed_precision() -> None:
    found = faults(composed("problem=cifar10_wrn", "method=zskt", "scale=paper", "trainer.precision=bf16-mixed"))
    assert [fault.partition("=")[0] for fault in found] == ["method.optimizer.fused", "method.optimizer_g.fused"]
    assert "set method.optimizer_g.fused=false" in found[1]
    fixed = ("method.optimizer.fused=false", "method.optimizer_g.fused=false")
    assert not faults(
        composed("problem=cifar10_wrn", "method=zskt", "scale=paper", "trainer.precision=bf16-mixed", *fixed)
    )
    assert not faults(composed("problem=cifar10_wrn", "method=zskt", "scale=paper", "trainer.precision=32-true"))
    assert not faults(composed("problem=cifar10", "method=fast_dfkd", "scale=paper", "trainer.precision=bf16-mixed")), (
        "it clips nothing"
    )
