"""Every classic method as its file in conf/method has it: it trains on the toy, and composes for real networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf
from toy import CLASSES, adam, network, patterns, trainer

from kd_lightning.config.check import check
from kd_lightning.config.resolvers import conf_dir
from kd_lightning.core.tasks import Classification
from kd_lightning.data.loader import TensorLoader
from kd_lightning.data.module import Images
from kd_lightning.errors import ConfigError
from kd_lightning.methods.real_data.distill import Distill
from kd_lightning.teachers.white_box import FrozenTeacher

QUICK = ("label_smoothing", "mlkd", "ctkd", "dkd", "pad", "sp", "crd", "vid", "ofd", "reviewkd", "fitnet")
"""One of each family, tried in every suite."""
ONE_STAGE = (
    *("label_smoothing", "tf_kd", "kd_ls", "mlkd", "ctkd", "dkd", "dist", "srd", "l2", "pad", "pkt", "sp", "cc", "rkd"),
    *("crd", "fitnet", "at", "vid", "nst", "ofd", "ickd", "reviewkd"),
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
    return {"label": 0.0, "terms": terms}


def fitted(given: dict[str, Any], *, epochs: int = 4) -> tuple[Distill, list[float], list[float]]:
    """A method after a few epochs of the toy, and its term's values in the first epoch and in the last."""
    torch.manual_seed(0)
    teacher, student = network((16, 32), batch_norm=True), network((8, 16), batch_norm=True)
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
    name = next(iter(method.terms))
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
    extra = sum(1 for net in modules.values() for _ in net.parameters())
    assert learned == len(list(method.student.parameters())) + extra


@pytest.mark.parametrize("name", ["ab", "fsp", "ft"])
def test_its_first_stage_trains_only_what_it_is_for(name: str) -> None:
    method, start, end = fitted(settings(name, first=True))
    assert sum(end) < sum(start)
    assert method.trains_student == (name != "ft")


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


def test_there_are_thirteen_pairs() -> None:
    assert len(PAIRS) == 13
