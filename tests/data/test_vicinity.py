"""Labels that are numbers: which images stand for a label, drawn a batch at a time as one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.data.augment import HorizontalFlip
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import ConfigError
from kd_lightning.sources.context import Context
from kd_lightning.sources.vicinal import Vicinal
from kd_lightning.sources.vicinity import Vicinity, label_noise, places, widest_gap
from kd_lightning.store.artifacts import Store

TENTHS = torch.arange(11) / 10
AGES = torch.arange(1, 61) / 60


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_numbers_of_the_sheet_for_tenths() -> None:
    vicinity = Vicinity(TENTHS, m_kappa=2.0)
    assert float(TENTHS.std(correction=0)) == pytest.approx(0.316228, abs=1e-6)
    assert vicinity.sigma == pytest.approx(0.207504, abs=1e-6)
    assert widest_gap(TENTHS) == pytest.approx(0.1)
    assert vicinity.kappa == pytest.approx(0.2)
    assert vicinity.nu == pytest.approx(25)
    assert vicinity.radius == pytest.approx(0.525652, abs=1e-6)


@pytest.mark.parametrize(("m", "nu", "years"), [(1, 3600, 2.628), (2, 900, 5.2565), (5, 144, 13.141)])
def test_numbers_of_the_sheet_for_ages(m: float, nu: float, years: float) -> None:
    vicinity = Vicinity(AGES, m_kappa=m)
    assert vicinity.nu == pytest.approx(nu, rel=1e-5)
    assert vicinity.radius * 60 == pytest.approx(years, abs=1e-3)
    at = torch.tensor([vicinity.kappa, vicinity.radius])
    torch.testing.assert_close(
        vicinity.weight(at, torch.zeros(2)), torch.tensor([math.exp(-1), 1e-3]), rtol=1e-4, atol=0
    )


def test_the_noise_of_ages_in_the_published_name() -> None:
    """0.04093 with 60 ages on 1 to 60, which only their real frequencies give; the formula is Silverman's."""
    labels = torch.rand(500, generator=rng())
    silverman = (4 * float(labels.std(correction=0)) ** 5 / (3 * 500)) ** 0.2
    assert label_noise(labels) == pytest.approx(silverman, rel=2e-3)


def test_a_hard_vicinity_is_kappa_wide_and_weighs_all_alike() -> None:
    vicinity = Vicinity(TENTHS, kind="hard", m_kappa=1.0)
    assert vicinity.radius == vicinity.kappa == pytest.approx(0.1)
    drawn = vicinity.draw(1000, rng())
    assert (drawn["real_weight"] == 1).all()
    assert (drawn["fake_weight"] == 1).all()


UNEVEN = torch.cat([torch.zeros(500), torch.full((20,), 0.25), torch.full((3,), 0.5), torch.tensor([0.9])])
UNEVEN = UNEVEN[torch.randperm(len(UNEVEN), generator=rng(1))]


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_every_draw_lies_where_it_should(kind: Any) -> None:
    vicinity = Vicinity(UNEVEN, kind=kind, m_kappa=0.5)
    drawn = vicinity.draw(4000, rng())
    real, target, fake = UNEVEN[drawn["index"]], drawn["target"], drawn["fake"]
    assert ((real - target).abs() <= vicinity.radius + 1e-6).all(), "a real image outside the vicinity"
    assert ((fake - target).abs() <= vicinity.radius + 1e-6).all()
    assert fake.min() >= 0
    assert fake.max() <= 1
    assert target.min() < 0, "targets are not clipped"
    wanted = torch.exp(-vicinity.nu * (fake - target).square()) if kind == "soft" else torch.ones(4000)
    torch.testing.assert_close(drawn["fake_weight"], wanted)
    if kind == "soft":
        assert drawn["real_weight"].min() >= 1e-3 - 1e-6


def test_targets_are_uniform_over_distinct_labels_not_over_images() -> None:
    vicinity = Vicinity(UNEVEN, m_kappa=0.1, sigma=1e-4)
    for labels in (vicinity.draw(8000, rng())["target"], vicinity.goals(8000, rng())):
        nearest = (labels[:, None] - vicinity.unique).abs().argmin(1)
        share = torch.bincount(nearest, minlength=4) / 8000
        torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.02, rtol=0)


def slow(labels: Tensor, radius: float, target: float) -> set[int]:
    return {i for i, label in enumerate(labels.tolist()) if abs(label - target) <= radius}


def test_real_images_are_uniform_among_those_in_the_vicinity() -> None:
    labels = torch.tensor([0.5, 0.1, 0.2, 0.15, 0.9, 0.2])
    vicinity = Vicinity(labels, kind="hard", m_kappa=0.2, sigma=0.02)
    drawn = vicinity.draw(30000, rng())
    index, target = drawn["index"], drawn["target"]
    seen: dict[frozenset[int], list[int]] = {}
    for i, t in zip(index.tolist(), target.tolist(), strict=True):
        seen.setdefault(frozenset(slow(labels, vicinity.radius, t)), []).append(i)
    assert frozenset({1, 2, 3, 5}) in seen
    for inside, chosen in seen.items():
        assert set(chosen) <= inside
        if len(chosen) > 2000:
            share = torch.bincount(torch.tensor(chosen), minlength=6)[sorted(inside)] / len(chosen)
            torch.testing.assert_close(share, torch.full((len(inside),), 1 / len(inside)), atol=0.04, rtol=0)


def test_without_width_and_noise_it_is_the_label_itself() -> None:
    drawn = Vicinity(UNEVEN, m_kappa=0.0, sigma=0.0).draw(500, rng())
    assert torch.equal(UNEVEN[drawn["index"]], drawn["target"])
    assert torch.equal(drawn["fake"], drawn["target"])
    assert (drawn["real_weight"] == 1).all()


def test_noise_is_drawn_again_where_no_image_is_near() -> None:
    labels = torch.tensor([0.0, 1.0])
    vicinity = Vicinity(labels, kind="hard", m_kappa=0.1, sigma=0.3)
    drawn = vicinity.draw(2000, rng())
    distance = torch.minimum(drawn["target"].abs(), (drawn["target"] - 1).abs())
    assert distance.max() <= 0.1 + 1e-6
    assert (vicinity.goals(2000, rng()) - 0.5).abs().min() < 0.2, "goals need no image"


def test_noise_that_never_meets_an_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise m_kappa=0, or lower sigma"):
        Vicinity(TENTHS, m_kappa=0.0).draw(8, rng())


def here(**changes: Any) -> Context:
    images = torch.arange(len(UNEVEN)).remainder(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    dataset = Dataset("toy", ["a", "b"], Split(images, UNEVEN), None, None, "none", "none")
    settings = {
        "dataset": dataset,
        "teacher": None,
        "store": Store("/nowhere"),
        "keys": {},
        "mean": [0.5],
        "std": [0.5],
    }
    return Context(**settings | changes)


def batches(epoch: int = 0, stop: int = 4, **changes: Any) -> list[Any]:
    loader = Vicinal(rounds=4, batch_size=8, augment=(HorizontalFlip(),)).prepare(here(**changes))
    loader.set_epoch(epoch)
    drawn = iter(loader)
    return [next(drawn) for _ in range(stop)]


def test_images_come_with_their_own_labels() -> None:
    for batch in batches():
        assert batch.x.shape == (8, 1, 4, 4)
        shown = (batch.x[:, 0, 0, 0] * 255).round().long()
        own = [UNEVEN[i::256].tolist() for i in shown.tolist()]
        assert all(
            any(abs(y - label) < 1e-6 for label in labels) for y, labels in zip(batch.y.tolist(), own, strict=True)
        )


def test_batches_differ_by_number_epoch_rank_and_seed() -> None:
    drawn = [*batches(), batches(1)[0], batches(rank=1)[0], batches(order_seed=1)[0]]
    assert len({float(batch.target.sum()) for batch in drawn}) == 7


def test_batches_go_on_where_they_stopped() -> None:
    first, second = (Vicinal(rounds=4, batch_size=8).prepare(here()) for _ in range(2))
    whole = list(first)
    drawn = iter(first)
    next(drawn)
    next(drawn)
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert len(rest) == 2
    for a, b in zip(rest, whole[2:], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_places_are_what_the_task_makes_of_labels() -> None:
    class Halves:
        def normalise(self, labels: Tensor) -> Tensor:
            return labels / 2

    assert places(Halves(), torch.tensor([1.0])).tolist() == [0.5]
    classes = torch.tensor([3])
    assert places(None, classes) is classes
