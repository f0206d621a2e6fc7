"""A labelled domain beside another without labels: what is read, what is refused, and how it is served."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.toy import context
from PIL import Image

from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.data.datasets import digit_domain, folder
from kd_lightning.data.load import dataset_digest
from kd_lightning.errors import ConfigError, DataError
from kd_lightning.sources.two_domains import TwoDomains
from kd_lightning.store.artifacts import Store

CLASSES = ["cat", "dog", "owl"]


def domain(name: str, n: int = 40, *, seed: int = 0, classes: list[str] = CLASSES, **changes: Any) -> Dataset:
    """Grey noise of 4x4; its test has half as many images."""
    draw = torch.Generator().manual_seed(seed)
    shape = changes.pop("shape", (1, 4, 4))
    parts = [
        Split(
            torch.randint(256, (k, *shape), generator=draw, dtype=torch.uint8),
            torch.randint(len(classes), (k,), generator=draw),
        )
        for k in (n, n // 2)
    ]
    settings = {"train": parts[0], "val": None, "test": parts[1], "layout": "none", "encoding": "raw"}
    return Dataset(name=name, classes=classes, **{**settings, **changes})


def source(target: Any, **settings: Any) -> TwoDomains:
    return TwoDomains(target=target, **{"batch_size": 8, **settings})


def streamed(**given: Any) -> Any:
    return context(needs={"source.two_streams"}, **given)


def moved(target: Any, tmp_path: Path, **settings: Any) -> Dataset:
    return source(target, **settings).moved(domain("labelled", seed=1), Store(tmp_path))


def test_the_test_is_the_targets_and_the_rest_stays(tmp_path: Path) -> None:
    own, other = (
        domain("labelled", seed=1, val=Split(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long())),
        domain("b"),
    )
    found = source(lambda: other).moved(own, Store(tmp_path))
    assert found.train is own.train
    assert found.val is own.val
    assert other.train is not None
    assert other.test is not None
    assert found.test is not None
    assert torch.equal(found.test.images, other.test.images)
    assert torch.equal(found.test.labels, other.test.labels)
    assert found.unlabelled is other.train.images
    assert dataset_digest(found) != dataset_digest(own)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    other = domain("b", classes=["owl", "cat"])
    found = moved(lambda: other, tmp_path)
    assert other.test is not None
    assert found.test is not None
    assert [["owl", "cat"][k] for k in other.test.labels] == [CLASSES[k] for k in found.test.labels]


def test_without_a_test_part_it_is_tested_on_what_it_is_trained_on(tmp_path: Path) -> None:
    other = domain("b", test=None)
    found = moved(lambda: other, tmp_path)
    assert found.test is not None
    assert found.unlabelled is found.test.images


def test_shuffled_training_labels_of_the_target_change_no_bit(tmp_path: Path) -> None:
    def shuffled(*, val: float) -> Dataset:
        other = domain("b")
        assert val == 0
        assert other.train is not None
        mixed = other.train.labels[torch.randperm(40, generator=torch.Generator().manual_seed(3))]
        assert not torch.equal(mixed, other.train.labels)
        return domain("b", train=Split(other.train.images, mixed))

    found, same = moved(lambda: domain("b"), tmp_path), moved(shuffled, tmp_path)
    assert dataset_digest(found) == dataset_digest(same)
    batches = [list(source(None, images=25).prepare(streamed(dataset=each))) for each in (found, same)]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.unlabelled.x, b.unlabelled.x)
        assert a.unlabelled.y is b.unlabelled.y is None
        assert a.labelled.y is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": (3, 4, 4)}, "b has images of 3x4x4, but data=labelled of 1x4x4"),
        ({"shape": (1, 5, 5)}, "source.target.size="),
        ({"classes": ["cat", "emu", "yak"]}, "b has classes that the labelled labelled lacks.*: emu, yak. Leave"),
        ({"train": None}, "has no training images"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        moved(lambda: domain("b", **changes), tmp_path)


def test_a_choice_of_the_targets_images_by_their_labels_is_refused(tmp_path: Path) -> None:
    def load(*, train: int | None = None, val: float = 0.1) -> Dataset:
        assert (train, val) == (None, 0)
        return domain("b")

    moved(load, tmp_path)
    with pytest.raises(ConfigError, match=r"source.target.train=20: .*source.images"):
        moved(partial(load, train=20), tmp_path)
    with pytest.raises(ConfigError, match="_partial_=true"):
        moved(domain("b"), tmp_path)


def test_how_it_is_served(tmp_path: Path) -> None:
    found = moved(lambda: domain("b", n=25), tmp_path)
    loader = source(None).prepare(streamed(dataset=found))
    assert len(loader) == 5  # a pass over the labelled images; the others begin again
    seen = [i for batch in loader for i in batch.unlabelled.index.tolist()]
    assert len(seen) == 40
    assert len(set(seen[:24])) == 24
    few = source(None, images=10).prepare(streamed(dataset=found)).unlabelled.images
    assert found.unlabelled is not None
    assert len(few) == 10
    assert all((found.unlabelled == image).flatten(1).all(1).any() for image in few)
    with pytest.raises(DataError, match=r"source.images=26: the target has 25"):
        source(None, images=26).prepare(streamed(dataset=found))
    with pytest.raises(DataError, match="the run's own source has to be"):
        source(None).prepare(streamed(dataset=domain("labelled")))


def test_ranks_share_both_streams(tmp_path: Path) -> None:
    found = moved(lambda: domain("b"), tmp_path)
    both = [source(None, batch_size=4).prepare(streamed(dataset=found, rank=rank, world=2)) for rank in (0, 1)]
    for part in ("labelled", "unlabelled"):
        seen = [[i for batch in loader for i in getattr(batch, part).index.tolist()] for loader in both]
        assert sorted(seen[0] + seen[1]) == list(range(40))


def test_class_folders_of_two_domains(tmp_path: Path) -> None:
    """Office-31's layout: one folder of classes for each domain, no test part, and a target with fewer classes."""
    for place, names in {"amazon": CLASSES, "webcam": CLASSES[1:]}.items():
        for k, name in enumerate(names):
            (tmp_path / place / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (6, 6), (10 * i, 60 * k, 200)).save(tmp_path / place / name / f"{i}.png")
    own = folder.load(root=tmp_path / "amazon", size=6, val=0)
    found = source(partial(folder.load, root=tmp_path / "webcam", size=6)).moved(own, Store(tmp_path / "store"))
    assert found.unlabelled is not None
    assert found.test is not None
    assert len(found.unlabelled) == len(found.test) == 8
    assert found.test.labels.tolist() == [1] * 4 + [2] * 4


def test_rotated_digits_share_none_with_the_plain_ones() -> None:
    plain = digit_domain.load(first=0, count=900, degrees=0.0)
    same = digit_domain.load(first=900, count=600, degrees=0.0)
    rotated = digit_domain.load(first=900, count=600, degrees=30.0)
    assert plain.train is not None
    assert same.train is not None
    assert rotated.train is not None
    assert rotated.test is not None
    assert (len(plain.train), len(rotated.train), len(rotated.test)) == (900, 600, 297)
    assert torch.equal(same.train.labels, rotated.train.labels)
    assert not torch.equal(same.train.images, rotated.train.images)
    again = {tuple(image.flatten().tolist()) for image in plain.train.images}
    shared = sum(tuple(image.flatten().tolist()) in again for image in same.train.images)
    assert shared <= 2  # scikit-learn's digits hold hardly a pair of equal ones
    with pytest.raises(DataError, match="choose fewer"):
        digit_domain.load(first=1000, count=600)


def test_digits_on_pictures(tmp_path: Path) -> None:
    """Where the digit is black the picture shows, where it is white the negative."""
    digits = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    digits[..., 4:] = 255
    pictures = torch.full((2, 3, 30, 30), 40, dtype=torch.uint8)
    made = digit_domain.blended(digits, pictures, torch.arange(3), 0)
    assert (made[..., :4] == 40).all()
    assert (made[..., 4:] == 215).all()
    drawn = digit_domain.load(count=30, channels=3, size=12, blend=True, degrees=0.0)
    assert drawn.train is not None
    assert drawn.test is not None
    assert drawn.train.images.shape == (30, 3, 12, 12)
    assert float(drawn.train.images.float().std()) > 30
    longer = digit_domain.load(count=40, channels=3, size=12, blend=True, degrees=0.0)
    assert longer.train is not None
    assert torch.equal(longer.train.images[:30], drawn.train.images)
    with pytest.raises(DataError, match=r"channels=3"):
        digit_domain.load(count=30, blend=True)
    with pytest.raises(DataError, match="holds 0 pictures"):
        digit_domain.load(count=30, channels=3, blend=True, ground=tmp_path)
