"""Pools of optimised images: what they are made to be, kept once, and gone on with after a kill."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed
from torch import nn

sys.path.append(str(Path(__file__).parent.parent / "methods"))
from toy import context, network, trained_teacher

from kd_lightning.config.check import faults
from kd_lightning.errors import ConfigError
from kd_lightning.losses.batch_norm import BatchNormTap, batch_norm_statistics
from kd_lightning.losses.image_prior import total_variation
from kd_lightning.losses.response import soft_cross_entropy
from kd_lightning.networks.classifiers.lenet import LeNet5
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources import pool
from kd_lightning.sources.data_impressions import (
    DataImpressions,
    class_similarity,
    concentrations,
    last_weights,
)
from kd_lightning.sources.deep_inversion import DeepInversion
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.answer_types import Described
from kd_lightning.teachers.black_box import QueryTeacher


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained_teacher()


@pytest.fixture(scope="module")
def teacher_bn() -> nn.Module:
    return trained_teacher(batch_norm=True)


def impressions(**settings: Any) -> DataImpressions:
    return DataImpressions(**{"images": 64, "batch_size": 16, "impressions": 16, "steps": 5, "lr": 0.05} | settings)


def inversion(**settings: Any) -> DeepInversion:
    return DeepInversion(**{"images": 64, "batch_size": 16, "inverted": 32, "steps": 5, "lr": 0.1} | settings)


# Targets


def test_similar_classes_are_those_whose_weights_point_the_same_way() -> None:
    similarity = class_similarity(torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    torch.testing.assert_close(similarity[0], torch.tensor([1.0, 0.6, 0.0]))
    torch.testing.assert_close(similarity[1], torch.tensor([0.0, 1.0, 0.5]))


@pytest.mark.parametrize(
    ("beta", "variant", "wanted"),
    [
        (1.0, "paper", [1.0001, 0.3751, 0.0001]),
        (0.1, "paper", [0.1001, 0.0376, 0.0001]),
        (1.0, "code", [1.0001, 0.3751, 0.0001]),
        (0.1, "code", [1.0001, 0.3751, 0.0001]),
    ],
)
def test_concentrations(beta: float, variant: Any, wanted: list[float]) -> None:
    alpha = concentrations(torch.tensor([1.0, 0.375, 0.0]), beta, variant=variant)
    torch.testing.assert_close(alpha, torch.tensor(wanted))


def test_dirichlet_targets_have_the_mean_of_their_concentrations() -> None:
    alpha = concentrations(torch.tensor([1.0, 0.375, 0.0]), 0.1).double().numpy()
    drawn = np.random.default_rng(0).dirichlet(alpha, 100_000)
    np.testing.assert_allclose(drawn.sum(1), 1)
    np.testing.assert_allclose(drawn.mean(0), alpha / alpha.sum(), atol=1e-2)


def test_the_last_weights_are_those_of_the_logits_in_our_order_of_classes() -> None:
    net = LeNet5()
    last = net.head[-1].weight  # type: ignore[union-attr]
    plain = Normalized(net, mean=[0.0], std=[1.0])
    assert torch.equal(last_weights(plain), last)  # type: ignore[arg-type]
    turned = Normalized(net, mean=[0.0], std=[1.0], class_order=list(range(9, -1, -1)))
    assert torch.equal(last_weights(turned), last.flip(0))  # type: ignore[operator]


# Data impressions


def test_impressions_come_close_to_their_targets_and_stay_images(teacher: Normalized) -> None:
    torch.manual_seed(0)
    targets = torch.from_numpy(np.random.default_rng(0).dirichlet([1.0, 0.3, 0.3, 0.1], 16)).float()
    noise = torch.rand(16, 1, 8, 8)
    far = soft_cross_entropy(teacher(noise), targets, temperature=20.0)
    near = impressions(steps=150, lr=0.05)
    x = near.impress(teacher, noise.clone(), targets)
    assert x.aminmax() == (0, 1)
    entropy = torch.special.entr(targets).sum(1).mean()
    close = soft_cross_entropy(teacher(x), targets, temperature=20.0)
    assert close - entropy < 0.7 * (far - entropy)


def test_clamped_impressions_have_full_contrast_where_stretched_ones_are_grey(teacher: Normalized) -> None:
    targets = torch.eye(4).repeat(8, 1)
    noise = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def extreme(keep: str) -> float:
        x = impressions(steps=60, lr=0.05, keep=keep).impress(teacher, noise.clone(), targets)
        assert x.aminmax() == (0, 1)
        return float(((x == 0) | (x == 1)).float().mean())

    assert extreme("clamp") > 0.2 > 0.01 > extreme("stretch")


def test_fresh_answers_are_left_to_the_method(teacher: Normalized) -> None:
    at = context(teacher)
    assert all(batch.t is None for batch in impressions(fresh_answers=True).prepare(at))
    made = set(at.store.root.iterdir())
    impressions().prepare(at)
    assert set(at.store.root.iterdir()) == made, "the pool is the same"


def test_impressions_are_served_with_the_teachers_answers(teacher: Normalized) -> None:
    at = context(teacher)
    loader = impressions().prepare(at)
    seen = 0
    for batch in loader:
        assert batch.t is not None
        torch.testing.assert_close(batch.t, teacher(batch.x), rtol=1e-4, atol=1e-4)
        seen += len(batch.x)
    assert seen == at.notes["images_synthesised"] == 64
    assert at.teacher.asked == 64 * 6


def test_each_pair_of_class_and_scaling_has_its_share_of_the_targets(
    teacher: Normalized, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[torch.Tensor] = []
    monkeypatch.setattr(DataImpressions, "impress", lambda self, net, x, y: (targets.append(y), x)[1])
    impressions(images=8000, impressions=1000).prepare(context(teacher))
    similarity = class_similarity(last_weights(teacher))
    for number, drawn in enumerate(targets):
        alpha = concentrations(similarity[number % 4], (1.0, 0.1)[number // 4])
        torch.testing.assert_close(drawn.mean(0), alpha / alpha.sum(), rtol=0, atol=0.06)
        assert drawn.mean(0).argmax() == number % 4
    # the smaller scaling sits in the corners: its largest entry is nearly 1
    assert targets[4].amax(1).mean() > targets[0].amax(1).mean() + 0.05


# Inverted images


def test_inverted_images_are_of_their_class_and_match_the_statistics(teacher_bn: Normalized) -> None:
    source = inversion(steps=80, images=128, inverted=128, bn=1.0, jitter=0, flip=False)
    at = context(teacher_bn)
    batches = list(source.prepare(at))
    x = torch.cat([batch.x for batch in batches])
    y = torch.cat([batch.y for batch in batches])  # type: ignore[misc]
    assert y.bincount().tolist() == [32] * 4
    assert (teacher_bn(x).argmax(1) == y).float().mean() > 0.95

    def distance(images: torch.Tensor) -> float:
        with torch.no_grad(), BatchNormTap(teacher_bn) as tap:
            teacher_bn(images)
            return float(batch_norm_statistics(tap.statistics, tap.layers))

    noise = torch.randn(128, 1, 8, 8) * 0.3 + 0.5
    assert distance(x) < 0.5 * distance(noise)
    assert not any(m._forward_pre_hooks for m in teacher_bn.modules())
    assert at.teacher.asked == 128 * 81


@pytest.mark.parametrize("prior", ["tv", "l2"])
def test_each_prior_pulls(prior: str, teacher_bn: Normalized) -> None:
    def made(**weights: float) -> torch.Tensor:
        source = inversion(steps=40, jitter=0, flip=False, **{"tv": 0.0, "l2": 0.0} | weights)
        u = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        x = source.invert(teacher_bn, u, torch.arange(32) % 4, np.random.default_rng(0))
        return teacher_bn.standardise(x)

    with_it, without = made(**{prior: 1.0}), made()
    size = {"tv": total_variation, "l2": torch.linalg.vector_norm}[prior]
    assert size(with_it) < 0.9 * size(without)


def test_clipped_pixels_stay_in_the_range_of_images_at_every_step(
    teacher_bn: Normalized, monkeypatch: pytest.MonkeyPatch
) -> None:
    u = 3 * torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    shown: list[torch.Tensor] = []
    handle = teacher_bn.register_forward_pre_hook(lambda _, args: shown.append(args[0].detach().clone()))
    for clip in (True, False):
        shown.clear()
        source = inversion(steps=6, jitter=0, flip=False, clip=clip)
        x = source.invert(teacher_bn, u.clone(), torch.arange(8) % 4, np.random.default_rng(0))
        low, high = (float(edge) for edge in torch.stack([*shown[1:], x]).aminmax())
        assert (low >= -1e-6 and high <= 1 + 1e-6) == clip
    handle.remove()


def test_jitter_and_flip_change_what_the_teacher_is_shown(teacher_bn: Normalized) -> None:
    def made(**settings: Any) -> torch.Tensor:
        u = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        source = inversion(**{"jitter": 0, "flip": False} | settings)
        return source.invert(teacher_bn, u, torch.arange(8) % 4, np.random.default_rng(0))

    plain = made()
    assert torch.equal(plain, made())
    assert not torch.equal(plain, made(jitter=1))
    assert not torch.equal(plain, made(flip=True))


def test_a_teacher_without_batch_norm_cannot_be_inverted(teacher: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"SmallConvNet as it is set has none.*teacher.net.batch_norm=true"):
        inversion().prepare(context(teacher))


@pytest.mark.parametrize("method", ["deep_inversion", "kd method.label=0 source=deep_inversion"])
def test_such_a_teacher_is_refused_before_anything_runs(method: str) -> None:
    overrides = f"method={method}".split()
    assert not faults(composed(*overrides, "teacher.net.batch_norm=true"))
    (fault,) = faults(composed(*overrides, "teacher=small_conv"))
    assert fault.startswith("source: DeepInversion reads the teacher's batch-norm statistics, but SmallConvNet")


def test_a_pool_by_gradients_is_refused_where_the_teacher_only_answers() -> None:
    (fault,) = faults(composed("method=zskd", "teacher.access=probs"))
    assert fault.startswith("source: DataImpressions needs the teacher's gradients, but teacher.access=probs")


# Both


@pytest.mark.parametrize("make", [impressions, inversion])
@pytest.mark.parametrize(
    ("teacher", "has"),
    [(None, "teacher=none"), (QueryTeacher(None, Described("api", "1", "probs", 4)), "teacher.access=probs")],
)
def test_without_gradients_there_is_nothing_to_optimise_by(make: Any, teacher: Any, has: str) -> None:
    with pytest.raises(ConfigError, match=has):
        make().prepare(context(teacher))


@pytest.mark.parametrize("make", [impressions, inversion])
def test_a_pool_is_made_once_and_a_killed_one_goes_on(
    make: Any, teacher_bn: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = make().prepare(context(teacher_bn))
    batches = 4 if make is impressions else 2
    saved: list[Path] = []
    save = pool.save_file

    def dying(tensors: Any, path: Path) -> None:
        if len(saved) == 1:
            raise KeyboardInterrupt
        saved.append(path)
        save(tensors, path)

    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "save_file", dying)
        with pytest.raises(KeyboardInterrupt):
            make().prepare(context(teacher_bn, store=store))
    monkeypatch.setattr(pool, "save_file", lambda tensors, path: (saved.append(path), save(tensors, path)))
    torch.manual_seed(1)  # a pool's randomness is its own
    again = make().prepare(context(teacher_bn, store=store))
    assert len(saved) == batches
    assert torch.equal(whole.images, again.images)
    assert whole.images.dtype == torch.uint8
    at = context(teacher_bn, store=store)
    kept = make().prepare(at)
    assert len(saved) == batches, "made again"
    assert torch.equal(kept.images, whole.images)
    assert at.teacher.asked == 64 * 6, "what an earlier run asked counts as well"
    other = make(seed=1).prepare(context(teacher_bn, store=store))
    assert not torch.equal(other.images, whole.images)


def test_networks_are_left_as_they_were(teacher_bn: nn.Module) -> None:
    before = {k: v.clone() for k, v in teacher_bn.state_dict().items()}
    inversion().prepare(context(teacher_bn))
    impressions().prepare(context(teacher_bn))
    assert all(torch.equal(v, before[k]) for k, v in teacher_bn.state_dict().items())
    assert not any(p.grad is not None for p in teacher_bn.parameters())
    assert network((8, 16)).training


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("zskd", ("source.impressions=32",)),
        ("deep_inversion", ("source.inverted=32", "teacher.net.batch_norm=true")),
    ],
)
def test_a_run_on_a_pool(method: str, overrides: tuple[str, ...], tiny: Any) -> None:
    result = tiny(f"method={method}", "source.images=64", "source.steps=2", "source.batch_size=32", *overrides)
    assert result["status"] == "ok"
    assert result["cost"]["images_synthesised"] == 64
