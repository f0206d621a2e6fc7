"""Every classic method as its file in conf/method has it: it trains on the toy, and composes for real networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from toy import CLASSES, adam, network, patterns, trained_teacher, trainer

from kd_lightning.config.check import check
from kd_lightning.config.resolvers import conf_dir
from kd_lightning.core.tasks import Classification
from kd_lightning.data.dataset import Split as Part
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.errors import ConfigError
from kd_lightning.losses.response import kl
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.methods.real_data.dml import Dml
from kd_lightning.metrics.transfer import Transfer
from kd_lightning.networks.classifiers.reused import ReusedHead
from kd_lightning.networks.classifiers.split import SplitNetwork, through_8_bits
from kd_lightning.networks.normalized import Normalized
from kd_lightning.teachers.white_box import FrozenTeacher

QUICK = ("label_smoothing", "mlkd", "ctkd", "dkd", "pad", "sp", "crd", "vid", "ofd", "reviewkd", "fitnet")
"""One of each family, tried in every suite."""
ONE_STAGE = (
    *("label_smoothing", "tf_kd", "kd_ls", "mlkd", "ctkd", "dkd", "dist", "srd", "l2", "pad", "pkt", "sp", "cc", "rkd"),
    *("crd", "fitnet", "at", "vid", "nst", "ofd", "ickd", "reviewkd", "sskd"),
)


def settings(name: str, *, first: bool = False) -> dict[str, Any]:
    """The terms of a method's file without the labels; of its first stage if ``first``."""
    read: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "method" / f"{name}.yaml"))
    node = read[f"{name}_first"]["method"] if first else read["method"]
    terms = {}
    for term, given in node["terms"].items():
        if name.startswith("crd") and term == "contrast":
            given["loss"]["negatives"] = 64
        kept = {key: instantiate(value) if isinstance(value, dict) else value for key, value in given.items()}
        terms[term] = {key: value for key, value in kept.items() if key not in ("warm_up", "given")}
    return {"label": 0.0, "terms": terms, "views": instantiate(node["views"]) if "views" in node else None}


def fitted(
    given: dict[str, Any], *, epochs: int = 4, bare: Callable[[nn.Module], nn.Module] | None = None
) -> tuple[Distill, list[float], list[float]]:
    """A method after a few epochs of the toy, and its last term's values in the first epoch and in the last.

    Args:
        given: its settings.
        epochs: of the toy.
        bare: a teacher's bare network to the student's, in place of a narrower one.
    """
    torch.manual_seed(0)
    teacher, student = network((16, 32), batch_norm=True), network((8, 16), batch_norm=True)
    if bare is not None:
        student.net = bare(copy.deepcopy(teacher.net))
    images, labels = patterns(256, seed=3)
    loader = TensorLoader((images * 255).byte(), labels, batch_size=32, shuffle=True)
    method = Distill(
        student=student,
        teacher=FrozenTeacher(teacher),
        task=Classification(CLASSES),
        optimizer=partial(adam, lr=5e-3),
        **given,
    )
    method.build_terms((1, 8, 8), 256)
    seen: list[dict[str, float]] = []
    record = method.record
    method.record = lambda **terms: (seen.append({k: float(v.detach()) for k, v in terms.items()}), record(**terms))  # type: ignore[method-assign, assignment, func-returns-value]
    method.train()
    trainer(epochs).fit(method, Images(loader, None))
    *_, name = method.terms
    return method, [row[name] for row in seen[:8]], [row[name] for row in seen[-8:]]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ONE_STAGE])
def test_its_own_loss_falls_and_what_it_needs_is_trained_and_not_exported(name: str) -> None:
    method, start, end = fitted(settings(name))
    assert sum(end) < sum(start)
    modules = method.kept_modules()
    for key, net in modules.items():
        assert all(value.isfinite().all() for value in net.state_dict().values() if value.is_floating_point()), key
    assert set(method.student.state_dict()) == set(network((8, 16), batch_norm=True).state_dict())
    learned = sum(len(group["params"]) for group in method.optimizers().param_groups)  # type: ignore[union-attr]
    extra = sum(p.requires_grad for net in modules.values() for p in net.parameters())  # what a stage handed on rests
    assert learned == len(list(method.student.parameters())) + extra


@pytest.mark.parametrize("name", ["ab", "fsp", "ft", "sskd"])
def test_its_first_stage_trains_only_what_it_is_for(name: str) -> None:
    method, start, end = fitted(settings(name, first=True))
    assert sum(end) < sum(start)
    assert method.trains_student == (name not in ("ft", "sskd"))


def reused(teacher: nn.Module) -> nn.Module:
    trunk = network((8, 16), batch_norm=True).net
    assert isinstance(trunk, nn.Module)
    return ReusedHead(trunk=trunk, teacher=teacher, image=(1, 8, 8))


def split(teacher: nn.Module) -> nn.Module:
    return SplitNetwork(net=teacher, upto="@blocks.0", image=(1, 8, 8), channels=2)


@pytest.mark.parametrize(("name", "bare", "part"), [("simkd", reused, "head"), ("ghnd", split, "net")])
def test_what_is_the_teachers_in_its_student_stays_the_teachers(
    name: str, bare: Callable[[nn.Module], nn.Module], part: str
) -> None:
    read: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "method" / f"{name}.yaml"))
    kept = {key: read["method"][key] for key in ("copied", "freeze")}
    method, start, end = fitted({**settings(name), **kept}, bare=lambda net: nn.Module.apply(bare(net), changed))
    assert sum(end) < 0.8 * sum(start)
    net = method.student.net
    assert isinstance(net, nn.Module)
    theirs = method.white.net.state_dict()
    own = {key: value for key, value in method.student.state_dict().items() if key.startswith(f"net.{part}.")}
    assert own
    for key, value in own.items():
        there = key.replace(f"net.{part}.", "net." if part == "net" else "net.head.")
        assert torch.equal(value, theirs[there]), key


def changed(module: nn.Module) -> None:
    """Other weights than the teacher's, which it has to get."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        module.reset_parameters()


def test_a_code_is_sent_in_8_bits_and_counted() -> None:
    net = split(network((16, 32), batch_norm=True).net)  # type: ignore[arg-type]
    assert isinstance(net, SplitNetwork)
    assert (net.code, net.bytes_an_image) == ((2, 4, 4), 2 * 4 * 4 + 8)
    code = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    code[2] = 5.0
    sent = through_8_bits(code)
    for before, after in zip(code, sent, strict=True):
        assert len(after.unique()) <= 256
        assert (after - before).abs().max() <= (before.max() - before.min()) / 510 + 1e-6
    assert not torch.equal(sent, code)
    x = torch.rand(2, 1, 8, 8)
    coarse = net.eval()(x)
    torch.testing.assert_close(coarse, net.net(net.decoder(through_8_bits(net.encoder(x)))))
    told = Transfer()(Normalized(net, mean=[0.5], std=[0.3]), None, Part(x, torch.zeros(2)))
    assert told == {"code": 40.0, "image": 64.0}
    with pytest.raises(ValueError, match=r"upto=layer1: SmallConvNet has features, features.0"):
        SplitNetwork(net=network((8,)).net, upto="layer1", image=(1, 8, 8))  # type: ignore[arg-type]


def test_two_students_teach_each_other() -> None:
    torch.manual_seed(0)
    student, peer = network((8, 16)), network((8, 16))
    images, labels = patterns(64, seed=3)
    loader = TensorLoader((images * 255).byte(), labels, batch_size=64, shuffle=False)
    x = (images * 255).byte().float() / 255
    own, other = student(x), peer(x)
    wanted = [
        F.cross_entropy(a, labels) + 2.0 * kl(a, b.detach(), temperature=1.0) for a, b in ((own, other), (other, own))
    ]
    both = [*student.parameters(), *peer.parameters()]
    gradients = torch.autograd.grad(wanted[0] + wanted[1], both)
    before = [p.detach().clone() for p in both]
    method = Dml(
        student=student,
        peer=peer,
        teacher=None,
        task=Classification(CLASSES),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        mutual=2.0,
    )
    trainer(1).fit(method.train(), Images(loader, None))
    for p, was, gradient in zip(both, before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), was - 0.1 * gradient)


@pytest.mark.parametrize(
    "overrides",
    [
        "problem=mnist_500 method=ft",
        pytest.param("problem=mnist_500 method=ab", marks=pytest.mark.slow),
        pytest.param("problem=mnist_500 method=pad", marks=pytest.mark.slow),
        pytest.param("problem=mnist_500 method=fsp", marks=pytest.mark.slow),
        "problem=cifar100_resnet32x4_resnet8x4 method=reviewkd scale=paper",
        pytest.param("problem=cifar100_resnet50_mobilenet_v2 method=crd scale=paper", marks=pytest.mark.slow),
        pytest.param("problem=cifar100_wrn_40_2_shufflenet_v1 method=fitnet scale=paper", marks=pytest.mark.slow),
        pytest.param("problem=cifar100_vgg13_mobilenet_v2 method=ofd", marks=pytest.mark.slow),
        pytest.param("problem=cifar100_resnet32x4_shufflenet_v2 method=vid", marks=pytest.mark.slow),
        "problem=mnist_500 method=sskd",
        "problem=mnist_500 method=ghnd student=split",
        pytest.param("problem=mnist_500 method=dml", marks=pytest.mark.slow),
        "problem=cifar100_wrn_40_2_shufflenet_v1 method=simkd student=reused network@student.trunk=shufflenet_v1",
    ],
)
def test_it_composes_for_these_networks(overrides: str) -> None:
    check(composed(*overrides.split()))


def test_a_wrong_place_is_refused_before_data_is_read() -> None:
    wrong = "method.terms.hint.student='@block'"
    with pytest.raises(
        ConfigError, match=r"method.terms.hint.student: SmallConvNet names no place @block; it has @stem"
    ):
        check(composed("problem=mnist_500", "method=fitnet", wrong))


@pytest.mark.slow
def test_a_teacher_with_permuted_classes_does_harm() -> None:
    teacher = trained_teacher()
    wrong = Normalized(teacher.net, mean=[0.5], std=[0.3], class_order=[1, 2, 3, 0])  # type: ignore[arg-type]
    images, labels = patterns(512, seed=3)
    found = {}
    for name, asked, label in (("scratch", None, 1.0), ("right", teacher, 0.1), ("wrong", wrong, 0.1)):
        torch.manual_seed(0)
        terms = {"response": {"weight": 0.9, "loss": partial(kl, temperature=4.0)}} if asked else {}
        method = Distill(
            student=network((8, 16)),
            teacher=None if asked is None else FrozenTeacher(asked),
            task=Classification(CLASSES),
            optimizer=partial(adam, lr=5e-3),
            label=label,
            terms=terms,
        )
        loader = TensorLoader((images * 255).byte(), labels, batch_size=64, shuffle=True)
        trainer(6).fit(method.train(), Images(loader, None))
        unseen, theirs = patterns(512, seed=2)
        found[name] = float((method.student.eval()(unseen).argmax(1) == theirs).float().mean())
    assert found["wrong"] < found["scratch"] - 0.3
    assert found["right"] > found["wrong"] + 0.3


def test_a_student_without_the_parts_that_it_should_copy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.copied: student: SmallConvNet has no net; it has features"):
        check(composed("problem=mnist_500", "method=hnd"))


PAIRS = sorted(file.stem for file in (conf_dir() / "problem").glob("cifar100_*_*.yaml"))


@pytest.mark.parametrize(
    "pair", [p if i % 5 == 0 else pytest.param(p, marks=pytest.mark.slow) for i, p in enumerate(PAIRS)]
)
def test_a_pair_of_the_benchmark_is_set_as_its_papers_are(pair: str) -> None:
    cfg = composed(f"problem={pair}", "method=supervised", "scale=paper")
    assert (cfg.trainer.max_epochs, cfg.data.recipe.batch_size, cfg.data.val) == (240, 64, 0)
    assert list(cfg.data.recipe.scheduler.milestones) == [150, 180, 210]
    light = "mobilenet" in pair or "shufflenet" in pair
    assert cfg.data.recipe.optimizer.lr == (0.01 if light else 0.05)
    assert all(0.58 < row["test/accuracy"] < 0.785 for row in cfg.paper.values())


@pytest.mark.parametrize("pair", ["imagenet_resnet34_resnet18", "imagenet_resnet50_mobilenet_v1"])
def test_a_pair_of_imagenet_is_set_as_its_papers_are(pair: str) -> None:
    cfg = composed(f"problem={pair}", "method=dkd", "scale=paper")
    check(cfg)
    assert (cfg.trainer.max_epochs, cfg.source.batch_size, cfg.data.size, cfg.data.num_classes) == (100, 512, 224, 1000)
    term = cfg.method.terms.decoupled
    assert (term.loss.beta, term.loss.temperature, term.warm_up) == (2.0 if "50" in pair else 0.5, 1.0, 1)
    assert set(cfg.paper) == {"kd", "crd", "reviewkd", "dkd", "dist"}
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in instantiate(net).parameters()) for net in (cfg.teacher.net, cfg.student)]
    assert sizes == ([25_557_032, 4_231_976] if "50" in pair else [21_797_672, 11_689_512])


def test_there_are_thirteen_pairs() -> None:
    assert len(PAIRS) == 13
