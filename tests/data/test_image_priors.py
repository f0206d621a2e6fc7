"""Questions made without data: images from a seed alone, or cut out of photographs, each asked about once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, composition, tiny_run
from doors import Fake, Tells, closed
from test_plan import planned

from kd_lightning.config.check import faults
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import BudgetExceeded, ConfigError
from kd_lightning.sources.context import Context
from kd_lightning.sources.image_priors import ImagePriors
from kd_lightning.sources.other_dataset import Other
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.answer_types import Abstained
from kd_lightning.teachers.white_box import FrozenTeacher

ASKED = ("method=kd", "method.label=0.0", "source=image_priors")


def means(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, 0].mean((1, 2)), x[:, 0].amax((1, 2)), x[:, 0, 0, 0]], 1)


def context(folder: Path, *, shape: tuple[int, int, int] = (1, 8, 8), **changes: Any) -> Context:
    nothing = Dataset("toy", list("abc"), None, None, None, "none", "none", shape=shape)
    settings = {"dataset": nothing, "teacher": None, "store": Store(folder / "store"), "keys": {}}
    statistics = {"mean": [0.4] * shape[0], "std": [0.2] * shape[0]}
    return Context(**settings | statistics | {"needs": {"teacher", "source.images"}} | changes)


def priors(images: int = 300, **settings: Any) -> ImagePriors:
    return ImagePriors(images=images, batch_size=100, **settings)


def photographs(size: tuple[int, int] = (12, 20), channels: int = 1) -> Dataset:
    images = torch.randint(256, (5, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset("street", ["road", "sky"], Split(images, torch.zeros(5).long()), None, None, "none", "none")


def test_the_pool_depends_on_its_seed_alone_and_begins_with_a_smaller_one(tmp_path: Path) -> None:
    pool = priors().made(context(tmp_path))
    assert pool.dtype == torch.uint8
    assert pool.shape == (300, 1, 8, 8)
    assert len(pool.flatten(1).unique(dim=0)) == 300
    assert torch.equal(pool, priors().made(context(tmp_path, order_seed=3, rank=1, world=2)))
    assert torch.equal(pool[:70], priors(70).made(context(tmp_path)))
    assert not torch.equal(pool, priors(seed=1).made(context(tmp_path)))


def test_any_height_and_width(tmp_path: Path) -> None:
    assert priors(30).made(context(tmp_path, shape=(3, 6, 24))).shape == (30, 3, 6, 24)
    assert priors(30).made(context(tmp_path, shape=(1, 7, 5))).shape == (30, 1, 7, 5)


def test_standardised_images_have_the_statistics_of_the_data_and_the_papers_have_their_own(tmp_path: Path) -> None:
    at = context(tmp_path, shape=(1, 16, 16))
    x, raw = (priors(standardise=on).made(at).float() / 255 for on in (True, False))
    near, raw_near = ((abs(images.std((1, 2, 3)) - 0.2) < 0.02).float().mean() for images in (x, raw))
    assert abs(float(x.mean()) - 0.4) < 0.02
    assert float(near) > 0.5
    assert float(raw_near) < 0.3


def test_every_image_is_asked_once_and_answers_stay_with_their_images(tmp_path: Path) -> None:
    client = Tells(means)
    for order_seed in (0, 1):  # another seed of the fit pays nothing
        at = context(tmp_path, teacher=closed(client, tmp_path, budget=300), order_seed=order_seed)
        batches = list(priors().prepare(at))
        assert sum(client.sizes) == at.teacher.asked == at.notes["queries"] == 300
    assert len(batches) == 3
    for batch in batches:
        assert batch.y is None
        torch.testing.assert_close(batch.t, means(batch.x))
    again = context(tmp_path, teacher=closed(client, tmp_path, budget=400))
    priors(400).prepare(again)
    assert sum(client.sizes) == 400
    counts = again.notes["class_counts"]["images"]
    answered = torch.cat([batch.t.argmax(1) for batch in priors(400).prepare(again)])
    assert counts["each"] == answered.bincount(minlength=3).tolist()
    assert (counts["rarest"], counts["commonest"]) == (min(counts["each"]), max(counts["each"]))


class Reticent(Fake):
    """Abstains on images whose first pixel is even."""

    def ask(self, images: Any) -> Any:
        return [self.say(image) if image.flat[0] % 2 else Abstained() for image in images]


def test_images_without_an_answer_are_left_out(tmp_path: Path) -> None:
    at = context(tmp_path, teacher=closed(Reticent(), tmp_path))
    batches = list(priors(60).prepare(at))
    first = torch.cat([(batch.x[:, 0, 0, 0] * 255).round().long() for batch in batches])
    assert 0 < len(first) < 60
    assert (first % 2 == 1).all()
    assert torch.equal(torch.cat([batch.t.argmax(1) for batch in batches]), first % 3)


@pytest.mark.parametrize("source", [priors(), Other(load=photographs, batch_size=100, images=300)])
def test_a_budget_too_small_ends_the_run_before_an_image_is_made(source: Any, tmp_path: Path) -> None:
    client = Tells(means)
    at = context(tmp_path, teacher=closed(client, tmp_path, budget=299))
    with pytest.raises(BudgetExceeded, match=r"teacher\.budget=299 images: 300 wanted"):
        source.prepare(at)
    assert not client.sizes
    assert not list((tmp_path / "store").glob("pool-*"))


def test_a_teacher_that_may_be_looked_into_is_asked_as_well(tmp_path: Path) -> None:
    teacher = FrozenTeacher(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
    at = context(tmp_path, teacher=teacher)
    (batch,) = ImagePriors(images=50, batch_size=50).prepare(at)
    torch.testing.assert_close(batch.t, teacher.net(batch.x))
    assert teacher.asked == 50
    assert sum(at.notes["class_counts"]["images"]["each"]) == 50


def test_parts_of_photographs_of_another_size_and_another_task(tmp_path: Path) -> None:
    client = Tells(means)
    at = context(tmp_path, teacher=closed(client, tmp_path, budget=100))
    whole = photographs().train.images
    windows = {w.numpy().tobytes() for w in whole.unfold(2, 8, 1).unfold(3, 8, 1).reshape(-1, 64)}
    loader = Other(load=photographs, batch_size=50, images=100).prepare(at)
    assert all(image.numpy().tobytes() in windows for image in loader.images.flatten(1))
    assert len({image.numpy().tobytes() for image in loader.images}) == sum(client.sizes) == 100
    (batch, *_) = loader
    torch.testing.assert_close(batch.t, means(batch.x))
    small = Other(load=lambda: photographs((4, 4), channels=3), batch_size=4, images=4)
    assert small.made(at, photographs((4, 4), channels=3).train.images).shape == (4, 1, 8, 8)


def test_mixes_of_photographs_are_of_two_and_standardised_at_will(tmp_path: Path) -> None:
    at = context(tmp_path)
    halves = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 20, 20)
    made = Other(load=photographs, batch_size=50, images=100, mix=True).made(at, halves)
    both = ((made > 200).flatten(1).any(1) & (made < 55).flatten(1).any(1)).float().mean()
    assert float(both) > 0.2
    x = Other(load=photographs, batch_size=50, images=100, mix=True, standardise=True)
    images = x.made(at, photographs().train.images).float() / 255
    assert abs(float(images.mean()) - 0.4) < 0.02
    assert abs(float(images.std((1, 2, 3)).median()) - 0.2) < 0.02


def test_other_refuses_what_needs_images_that_are_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"say how many with source\.images=20000"):
        Other(load=photographs, batch_size=5, mix=True)
    labels = context(tmp_path, needs={"source.labels"})
    with pytest.raises(ConfigError, match=r"set method\.label=0"):
        Other(load=photographs, batch_size=5, images=5).prepare(labels)
    same = lambda: Dataset("x", list("abc"), Split(torch.zeros(3, 1, 8, 8).byte(), torch.arange(3)),  # noqa: E731
                           None, None, "none", "none")  # fmt: skip
    with pytest.raises(ConfigError, match=r"asks only about images that it makes"):
        Other(load=same, batch_size=3).prepare(context(tmp_path, needs={"source.answers"}))


@pytest.mark.parametrize("access", ["white", "label"])
def test_it_suits_every_access_and_no_labels(access: str) -> None:
    assert not faults(composed(*ASKED, f"teacher.access={access}"))
    (fault,) = faults(composed("method=kd", "source=image_priors", f"teacher.access={access}"))
    assert fault.endswith("set method.label=0")


def test_without_a_teacher_it_says_so() -> None:
    assert "source: ImagePriors needs a teacher, but teacher=none: choose one with teacher=NAME" in faults(
        composed(*ASKED, "teacher=none")
    )


def test_a_plan_asks_exactly_as_often_and_a_run_without_data_counts_classes(
    tmp_path: Path, store: Path, teacher_file: Path
) -> None:
    nothing = ("data=none", "data.size=8", "teacher.access=label", "teacher.budget=640", "source.images=640")
    overrides = (*ASKED, *nothing, f"teacher.weights={teacher_file}")
    steps = {step.name: step.images for step in planned(*overrides).steps}
    assert steps == {"teacher": 0, "student's answers": 640, "student": 0, "test": 0, "result": 0}
    assert not list(store.glob("pool-*"))
    result = tiny_run(tmp_path / "run", *overrides)
    assert result["cost"]["queries"] == 640
    counts = result["class_counts"]["student"]["images"]
    assert sum(counts["each"]) == 640
    assert counts["rarest"] < counts["commonest"]


@pytest.mark.slow
def test_priors_as_a_control_take_as_many_updates_as_the_student(tiny: Callable[..., Any], teacher_file: Path) -> None:
    whole = composition("method=dafl", "controls=priors", "controls.priors.source.images=640")
    long = whole.controls["priors"].stretched(updates=100, images=None, world=1)
    assert long.trainer["max_epochs"] == round(100 / (640 // whole.method["batch_size"]))
    few = ("controls=priors", "~controls.scratch", "controls.priors.source.images=64")
    result = tiny("method=dafl", *few, f"teacher.weights={teacher_file}")
    assert sum(result["class_counts"]["priors"]["images"]["each"]) == 64
    assert result["metrics"]["priors/accuracy"] > 0
