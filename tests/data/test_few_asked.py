"""FS-BBT's images: every one of the few equally often, mixes between their parents, latents that know no class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doors import Tells, closed
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor

from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import BudgetExceeded, ConfigError, DataError
from kd_lightning.networks.generators.cvae import MlpDecoder
from kd_lightning.sources.context import Context
from kd_lightning.sources.few_shot_queried import FewAsked, mixup_again
from kd_lightning.sources.fs_bbt import Mixup, MixupCvae, decoded, latents, mixed, pairs, shares
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.answer_types import Answer

CLASSES = 3


def truth(x: Tensor) -> Tensor:
    """What the server says of images (N, 1, H, W) in [0, 1]."""
    return torch.stack([x.flatten(1).mean(1), x.flatten(1).std(1), x[:, 0, 0, 0]], 1)


class Server(Tells):
    """Answers, and remembers every image it was asked about."""

    def __init__(self) -> None:
        super().__init__(truth)
        self.seen: list[bytes] = []

    def ask(self, images: np.ndarray) -> Sequence[Answer]:
        self.seen += [image.tobytes() for image in images]
        return super().ask(images)


def dataset() -> Dataset:
    """Twenty random images of each class, all different."""
    images = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset("toy", list("abc"), Split(images, torch.arange(60) % CLASSES), None, None, "none", "none")


def context(folder: Path, server: Any, *, budget: int | None = None, **changes: Any) -> Context:
    teacher = closed(server, folder, budget=budget)
    settings = {"dataset": dataset(), "teacher": teacher, "store": Store(folder / "store"), "mean": [0.4], "std": [0.2]}
    keys = {"data": "toy", "teacher": "toy"}
    return Context(**settings | {"keys": keys, "needs": {"teacher", "source.images"}} | changes)


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A file of weights of a decoder that nobody has trained."""
    torch.manual_seed(0)
    save_file(MlpDecoder(size=8, widths=(32, 16), num_classes=CLASSES).state_dict(), tmp_path / "generator.safetensors")
    return tmp_path / "generator.safetensors"


def source(decoder: Path, synthetic: int = 60, **settings: Any) -> FewAsked:
    network = MlpDecoder(size=8, widths=(32, 16), num_classes=CLASSES)
    expand = MixupCvae(generator=network, weights=str(decoder))
    return FewAsked(**{"per_class": 2, "batch_size": 8, "synthetic": synthetic, "expand": expand} | settings)


def bytes_of(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


@pytest.mark.parametrize("few", [2, 3, 7, 50])
def test_every_one_of_the_few_is_a_parent_equally_often_on_each_side_and_never_its_own_partner(few: int) -> None:
    for seed in range(20):
        first, second = pairs(few * 8, few, np.random.default_rng(seed))
        assert set(Counter(first.tolist()).values()) == set(Counter(second.tolist()).values()) == {8}
        assert (first != second).all()
    first, second = pairs(few + 1, few, np.random.default_rng(0))
    assert len(first) == len(second) == few + 1
    assert set(Counter(first.tolist()).values()) == {1, 2}
    assert not np.array_equal(*(pairs(100, 50, np.random.default_rng(seed))[0] for seed in (0, 1)))


def test_one_image_has_no_partner() -> None:
    with pytest.raises(DataError, match=r"raise source\.per_class"):
        pairs(4, 1, np.random.default_rng(0))


def test_every_pixel_of_a_mix_is_between_its_parents() -> None:
    random, few = np.random.default_rng(0), dataset().train.images  # type: ignore[union-attr]
    (first, second), share = pairs(3000, len(few), random), shares(3000, 1.0, random)
    x, one, other = mixed(few, first, second, share), few[first], few[second]
    assert x.dtype == torch.uint8
    assert (x >= torch.minimum(one, other)).all()
    assert (x <= torch.maximum(one, other)).all()
    wanted = share[:, None, None, None] * one.numpy() + (1 - share[:, None, None, None]) * other.numpy()
    assert np.abs(x.numpy() - wanted).max() <= 0.5 + 1e-4
    assert torch.equal(mixed(few, first, second, np.ones(3000)), one)
    assert torch.equal(mixed(few, first, second, np.zeros(3000)), other)


@pytest.mark.parametrize(("a", "dropped"), [(1.0, 0.11), (0.2, 0.59), (2.0, 0.018)])
def test_weights_are_of_two_decimals_and_as_often_near_an_end_as_beta_says(a: float, dropped: float) -> None:
    share = shares(20_000, a, np.random.default_rng(0))
    assert np.abs(share * 100 - np.round(share * 100)).max() < 1e-9
    near = ((share <= 0.05) | (share >= 0.95)).mean()
    assert abs(near - dropped) < 4 * np.sqrt(dropped * (1 - dropped) / 20_000) + 0.005


def test_latents_of_every_class_come_from_both_ways_in_equal_parts() -> None:
    z, label = latents(20_000, 2, 10, np.random.default_rng(0))
    assert set(torch.bincount(label).tolist()) == {2000}
    turn = torch.arange(20_000) // 10 % 2
    assert set(torch.bincount(2 * label + turn).tolist()) == {1000}
    near, far = z[turn == 0].flatten(), z[turn == 1].flatten()
    assert stats.kstest(near.numpy(), "norm").pvalue > 0.01
    assert stats.kstest(far.numpy(), stats.uniform(-3, 6).cdf).pvalue > 0.01
    # and class by class, which the authors' blocks would fail
    assert all((z[label == k].abs() > 2).float().mean() == pytest.approx(0.19, abs=0.04) for k in range(10))
    for sampling, cdf in {"gaussian": "norm", "uniform": stats.uniform(-3, 6).cdf}.items():
        z, label = latents(1003, 2, 10, np.random.default_rng(1), sampling=sampling)
        assert len(z) == len(label) == 1003
        assert stats.kstest(z.flatten().numpy(), cdf).pvalue > 0.01


def test_the_decoder_alone_makes_images() -> None:
    z, label = latents(7, 2, CLASSES, np.random.default_rng(0))
    network = MlpDecoder(size=8, num_classes=CLASSES)
    x = decoded(network, z, label)
    assert (x.shape, x.dtype) == ((7, 1, 8, 8), torch.uint8)
    torch.testing.assert_close(x.float() / 255, network(z, label).detach(), atol=0.5 / 255 + 1e-6, rtol=0)


def test_the_mixes_that_stay_and_the_cvaes_images_are_as_many_as_were_wanted(tmp_path: Path, decoder: Path) -> None:
    at, few = context(tmp_path, Server()), dataset().train.images[:20]  # type: ignore[union-attr]
    expand = source(decoder).expand
    assert expand is not None
    (made,) = expand(at, few, 2000, 0)
    (alone,) = Mixup()(at, few, 2000, 0)
    assert len(made) == len(alone) == 2000
    stays = sum(a == b for a, b in zip(bytes_of(made), bytes_of(mixed_that_stay(few)), strict=False))
    assert abs(stays - 0.89 * 2000) < 4 * np.sqrt(2000 * 0.11 * 0.89)
    cvae = made[stays:]
    assert 128 - 60 < cvae.float().mean() < 128 + 60
    assert cvae.float().std(0).max() < 40 < few.float().std(0).min()  # an untrained decoder's


def mixed_that_stay(few: Tensor) -> Tensor:
    random = np.random.default_rng(0)
    (first, second), share = pairs(2000, len(few), random), shares(2000, 1.0, random)
    keep = (share > 0.055) & (share < 0.945)
    return mixed(few, first[keep], second[keep], share[keep])


def test_the_few_and_all_that_is_made_of_them_are_asked_about_once(tmp_path: Path, decoder: Path) -> None:
    server = Server()
    before = context(tmp_path, server)
    few = FewAsked(per_class=6, batch_size=8).prepare(before)
    assert before.notes["queries"] == before.teacher.asked == 18
    at = context(tmp_path, server, budget=78)
    loader = source(decoder, per_class=6).prepare(at)
    assert len(server.seen) == len(set(server.seen)) == 78
    assert at.notes["queries"] == at.teacher.asked == 78
    assert at.notes["images_synthesised"] == 60
    assert server.seen == bytes_of(loader.images)
    assert torch.equal(few.images, loader.images[:18])
    torch.testing.assert_close(loader.answers, truth(loader.images.float() / 255))
    for order in (0, 1):  # another seed of the student asks about nothing
        source(decoder, per_class=6).prepare(context(tmp_path, server, order_seed=order))
    assert len(server.seen) == 78


def test_real_images_of_stage_and_student_are_those_that_were_noted(tmp_path: Path, decoder: Path) -> None:
    server, data = Server(), dataset()
    assert data.train is not None
    at = context(tmp_path, server)
    FewAsked(per_class=2, batch_size=8).prepare(at)
    source(decoder).prepare(context(tmp_path, server))
    places = at.notes["few_shot"]
    assert len(places) == len(set(places)) == 6
    assert sorted(data.train.labels[places].tolist()) == [0, 0, 1, 1, 2, 2]
    assert set(server.seen) & set(bytes_of(data.train.images)) == set(bytes_of(data.train.images[places]))


def test_a_budget_that_is_too_small_is_said_before_the_first_question(tmp_path: Path, decoder: Path) -> None:
    server = Server()
    with pytest.raises(BudgetExceeded, match="budget=65"):
        source(decoder).prepare(context(tmp_path, server, budget=65))
    assert server.seen == []


def test_what_is_asked_follows_the_seed_of_the_source_and_nothing_else(tmp_path: Path, decoder: Path) -> None:
    def plan(name: str, *, seed: int = 0, **changes: Any) -> str:
        at = context(tmp_path / name, Server(), **changes)
        source(decoder, seed=seed).prepare(at)
        return at.notes["plan"]

    first = plan("a")
    torch.manual_seed(7)
    assert plan("b", order_seed=5, rank=1, world=2) == first
    assert plan("c", seed=1) != first


def test_the_teacher_of_a_method_that_wants_no_answers_is_left_alone(tmp_path: Path) -> None:
    server = Server()
    at = context(tmp_path, server, needs={"source.images", "source.labels"})
    loader = FewAsked(per_class=2, batch_size=8, synthetic=60).prepare(at)
    assert server.seen == []
    assert loader.answers is None
    assert loader.labels is not None
    assert torch.bincount(loader.labels).tolist() == [22, 22, 22]  # as long as with what others make of them
    assert len(set(bytes_of(loader.images))) == 6
    at = context(tmp_path, server, needs={"teacher", "source.labels"})
    asked = FewAsked(per_class=2, batch_size=8, synthetic=60).prepare(at)
    assert len(server.seen) == at.notes["queries"] == 6
    assert torch.equal(asked.images, loader.images)
    torch.testing.assert_close(asked.answers, truth(asked.images.float() / 255))


def test_every_one_of_the_few_is_in_every_epoch(tmp_path: Path) -> None:
    loader = FewAsked(per_class=3, batch_size=8).prepare(context(tmp_path, Server()))
    assert sorted(torch.cat([batch.index for batch in loader if batch.index is not None]).tolist()) == list(range(9))


def test_labels_for_made_images_and_nothing_to_make_are_refused(tmp_path: Path, decoder: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.label=0"):
        source(decoder).prepare(context(tmp_path, Server(), needs={"teacher", "source.labels"}))
    with pytest.raises(ConfigError, match=r"source\.synthetic=0"):
        source(decoder, synthetic=0).prepare(context(tmp_path, Server()))
    with pytest.raises(ConfigError, match="choose one with teacher=NAME"):
        FewAsked(per_class=2, batch_size=8).prepare(context(tmp_path, Server(), teacher=None))


def test_mixing_again_mixes_images_and_answers_alike() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.zeros(400, 1, 2, 2)
    x[::2] = 1
    log_p = torch.log_softmax(torch.tensor([[4.0, 0.0], [0.0, 40.0]]), 1)[torch.arange(400) % 2]
    y, t = mixup_again(x, log_p, rng)
    told = t.exp()
    torch.testing.assert_close(told.sum(1), torch.ones(400))
    share = y.mean((1, 2, 3))  # of the even kind
    torch.testing.assert_close(told, share[:, None] * log_p[0].exp() + (1 - share[:, None]) * log_p[1].exp())
    between = share[(share > 0) & (share < 1)]
    assert 150 < len(between) < 250
    assert stats.kstest(between.numpy(), "uniform").pvalue > 0.01
    assert not torch.equal(mixup_again(x, log_p, rng)[0], y)


def test_batches_are_mixed_again_where_that_is_wanted(tmp_path: Path, decoder: Path) -> None:
    at = context(tmp_path, Server())
    plain, again = (source(decoder, mixup_again=on).prepare(at) for on in (False, True))
    first, second = next(iter(plain)), next(iter(again))
    assert torch.equal(first.index, second.index)  # type: ignore[arg-type]
    assert not torch.equal(first.x, second.x)
    assert second.y is None
    assert second.t is not None
    torch.testing.assert_close(second.t.exp().sum(1), torch.ones(8))
