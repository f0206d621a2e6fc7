"""What training may see: nothing more than the source promises, and the same again after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from doors import Fake, Tells, asking, closed
from hydra.utils import instantiate

from kd_lightning.core.tasks import Regression
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import BudgetExceeded, ConfigError, DataError, TeacherError
from kd_lightning.sources.context import Context
from kd_lightning.sources.data_free import Free
from kd_lightning.sources.noise import Noise
from kd_lightning.sources.other_dataset import Other
from kd_lightning.sources.queried import Queried
from kd_lightning.sources.queried_once import ask
from kd_lightning.sources.real import FewShot, Real
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.answer_types import Abstained, Unfit
from kd_lightning.teachers.black_box import QueryTeacher
from kd_lightning.teachers.white_box import FrozenTeacher


def context(folder: Path, **changes: Any) -> Context:
    """Thirty images of one pixel, whose value is their position; ten of each of three classes."""
    images = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1)
    data = Dataset("toy", ["a", "b", "c"], Split(images, torch.arange(30) % 3), None, None, "none", "none")
    settings = {"dataset": data, "teacher": None, "store": Store(folder), "keys": {}, "mean": [0.4], "std": [0.2]}
    return Context(**settings | changes)


def positions(loader: Any) -> list[int]:
    return sorted(round(v * 255) for batch in loader for v in batch.x.flatten().tolist())


def test_real_serves_everything(tmp_path: Path) -> None:
    loader = Real(batch_size=10).prepare(context(tmp_path))
    assert positions(loader) == list(range(30))


def test_a_set_smaller_than_a_batch_is_still_served(tmp_path: Path) -> None:
    assert len(Real(batch_size=64).prepare(context(tmp_path))) == 1


def test_few_shot_takes_n_of_each_class_chosen_by_its_own_seed(tmp_path: Path) -> None:
    def chosen(per_class: int, seed: int, **order: int) -> list[int]:
        source = FewShot(per_class=per_class, batch_size=99, seed=seed)
        return positions(source.prepare(context(tmp_path, **order)))

    four = chosen(4, seed=0, order_seed=0)
    assert sorted(p % 3 for p in four) == [0] * 4 + [1] * 4 + [2] * 4
    assert chosen(4, seed=0, order_seed=7) == four
    assert chosen(4, seed=1, order_seed=0) != four
    assert set(four) < set(chosen(5, seed=0))


def test_few_shot_of_more_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source\.per_class=11, but class a has 10.*source\.per_class=10 or less"):
        FewShot(per_class=11, batch_size=4).prepare(context(tmp_path))


@pytest.mark.parametrize(
    "source", [Real(batch_size=4), FewShot(per_class=1, batch_size=4), Queried(images=2, batch_size=2)]
)
def test_without_training_images_says_what_to_do(source: Any, tmp_path: Path) -> None:
    nothing = Dataset("none", ["a"], None, None, None, "none", "none", shape=(1, 1, 1))
    with pytest.raises(DataError, match=r"data=none has no training images.*method=\w+"):
        source.prepare(context(tmp_path, dataset=nothing, teacher=closed(Fake(), tmp_path)))


class Untouchable:
    """Data that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"looked at {name}")


def test_free_touches_no_data(tmp_path: Path) -> None:
    loader = Free(rounds=5).prepare(
        context(tmp_path, dataset=Untouchable(), teacher=Untouchable(), store=Untouchable())
    )
    assert len(loader) == 5
    assert list(loader) == list(loader) == [0, 1, 2, 3, 4]


def noise(tmp_path: Path, **changes: Any) -> Any:
    settings = {"mean": [0.2, 0.6], "std": [0.1, 0.3], "dataset": Dataset(
        "toy", ["a"], None, None, None, "none", "none", shape=(2, 8, 8)
    )}  # fmt: skip
    return Noise(rounds=6, batch_size=50).prepare(context(tmp_path, **settings | changes))


def test_noise_has_the_data_statistics_and_is_fresh_in_every_batch_epoch_rank_and_seed(tmp_path: Path) -> None:
    batches = [batch.x for batch in noise(tmp_path)]
    x = torch.cat(batches)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0.2, 0.6], abs=0.01)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([0.1, 0.3], abs=0.01)
    neighbours = torch.corrcoef(torch.stack([x[:, 0, :, :-1].flatten(), x[:, 0, :, 1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.03
    later = noise(tmp_path)
    later.set_epoch(1)
    batches += [next(iter(loader)).x for loader in (later, noise(tmp_path, rank=1), noise(tmp_path, order_seed=1))]
    assert len({batch.sum().item() for batch in batches}) == len(batches)
    assert all(batch.y is None for batch in noise(tmp_path))


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_noise_and_rounds_go_on_where_they_stopped(stop: int, tmp_path: Path) -> None:
    for make in (lambda: noise(tmp_path), lambda: Free(rounds=6).prepare(context(tmp_path))):
        whole = make()
        whole.set_epoch(3)
        wanted = [getattr(item, "x", item) for item in whole]
        first = make()
        first.set_epoch(3)
        drawn = iter(first)
        for _ in range(stop):
            next(drawn)
        second = make()
        second.load_state_dict(first.state_dict())
        second.set_epoch(3)
        iter(second)  # Lightning asks once in vain
        rest = [getattr(item, "x", item) for item in second]
        assert len(rest) == 6 - stop
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(rest, wanted[stop:], strict=True)
        )
        assert len(list(second)) == 6


def test_queried_stores_each_answer_beside_its_image(tmp_path: Path) -> None:
    client = Tells(lambda x: x.flatten(1).repeat(1, 3) * 255)
    for order_seed in (0, 1):
        teacher = closed(client, tmp_path, budget=20)
        at = context(tmp_path, teacher=teacher, order_seed=order_seed)
        batches = list(Queried(images=20, batch_size=5).prepare(at))
        assert sum(client.sizes) == teacher.asked == at.notes["queries"] == 20
        assert at.notes["answers"] == {"images": {"asked": 20, "abstained": 0, "failed": 0}}
        assert len(batches) == 4
        for batch in batches:
            torch.testing.assert_close(batch.t, (batch.x.flatten(1) * 255).repeat(1, 3))
    with pytest.raises(BudgetExceeded):
        Queried(images=21, batch_size=5).prepare(context(tmp_path, teacher=teacher))
    assert sum(client.sizes) == 20


def test_queried_from_a_teacher_that_may_be_looked_into(tmp_path: Path) -> None:
    teacher = FrozenTeacher(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 3)))
    (batch,) = Queried(images=20, batch_size=20).prepare(context(tmp_path, teacher=teacher))
    torch.testing.assert_close(batch.t, teacher.net(batch.x))
    assert teacher.asked == 20


def another(shape: tuple[int, ...] = (1, 1), classes: int = 3, train: bool = True, **changes: Any) -> Dataset:
    """Twelve images of one value, from 100 on, none of which is among those of the context."""
    images = torch.arange(100, 112, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, *shape)
    part = Split(images, changes.pop("labels", torch.arange(12) % 2))
    names = [str(c) for c in range(classes)]
    return Dataset("other", names, part if train else None, part, part, "none", "none", **changes)


def test_other_serves_the_training_part_of_another_set_with_its_labels(tmp_path: Path) -> None:
    loader = Other(load=another, batch_size=5).prepare(context(tmp_path))
    batches = []
    for epoch in range(8):
        loader.set_epoch(epoch)
        batches += list(loader)
    assert {round(v * 255) for batch in batches for v in batch.x.flatten().tolist()} == set(range(100, 112))
    assert all(batch.y.equal((batch.x.flatten() * 255).round().long() % 2) for batch in batches)
    assert {len(batch.x) for batch in batches} == {5}
    loader = Other(load=another, batch_size=12, augment=[lambda x, _: 1 - x]).prepare(context(tmp_path))
    assert positions(loader) == list(range(255 - 111, 255 - 99))


def test_other_loads_its_set_no_sooner_than_it_is_prepared(tmp_path: Path) -> None:
    node = {"_target_": f"{another.__module__}.another", "_partial_": True, "classes": 3}
    source = instantiate({"_target_": "kd_lightning.sources.other_dataset.Other", "load": node, "batch_size": 12})
    assert positions(source.prepare(context(tmp_path))) == list(range(100, 112))
    with pytest.raises(ConfigError, match=r"is not a function but its result: set source\.load\._partial_=true"):
        Other(load=another(), batch_size=12).prepare(context(tmp_path))  # type: ignore[arg-type]


def test_other_hands_the_store_to_a_set_that_keeps_decoded_images(tmp_path: Path) -> None:
    at, given = context(tmp_path), []

    def keeping(*, store: Store | None = None) -> Dataset:
        given.append(store)
        return another()

    Other(load=keeping, batch_size=12).prepare(at)
    assert given == [at.store]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": (2, 2)}, r"other has images of 1x2x2, but data=toy of 1x1x1\. Set source\.load\.size"),
        ({"classes": 4}, r"labels of other have num_classes=4, but those of data=toy have num_classes=3"),
        (
            {"labels": torch.zeros(12), "task": Regression(low=0, high=1, unit="m"), "classes": 0},
            r"labels of other have low=0 high=1 unit=m floored=False, but those of data=toy have num_classes=3",
        ),
        ({"train": False}, r"other has no training images"),
    ],
)
def test_other_images_that_do_not_fit(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"source\.load: .*{said}"):
        Other(load=lambda: another(**changes), batch_size=4).prepare(context(tmp_path))


class Partial(Fake):
    """Abstains on images 3 and 4 of its classes, and does not take image 7."""

    def ask(self, images: Any) -> Any:
        if 7 in images:
            raise Unfit("422")
        return [Abstained() if image.item() in (3, 4) else self.say(image) for image in images]


def test_what_was_not_answered_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strict = context(tmp_path, teacher=closed(Partial(), tmp_path))
    with pytest.raises(TeacherError, match=r"failed on 1 of 30 images, which leaves 0\.9667.*teacher\.min_coverage=1:"):
        Queried(images=None, batch_size=30).prepare(strict)
    door = asking(Partial(), tmp_path)
    at = context(tmp_path, teacher=QueryTeacher(door, door.described, min_coverage=0.9))
    (batch,) = Queried(images=None, batch_size=27).prepare(at)
    assert set(range(30)) - set((batch.x.flatten() * 255).round().int().tolist()) == {3, 4, 7}
    assert torch.equal(batch.t.argmax(1), (batch.x.flatten() * 255).round().long() % 3)
    assert torch.equal(batch.y, batch.t.argmax(1))
    assert at.notes["answers"] == {"images": {"asked": 30, "abstained": 2, "failed": 1}}
    assert "training on 27 of 30 images: the teacher abstained on 2 and failed on 1" in capsys.readouterr().out
    with pytest.raises(TeacherError, match="answered none of 2 images"):
        ask(at, torch.tensor([3, 4], dtype=torch.uint8).view(2, 1, 1, 1))


def test_queried_without_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one with teacher=NAME"):
        Queried(images=2, batch_size=2).prepare(context(tmp_path))
