"""A generator's images are drawn, subsampled, filtered, given labels and joined to real ones: the four switches."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_lightning.config.node import Node
from kd_lightning.core.tasks import Classification, Regression
from kd_lightning.data.dataset import Dataset, Split
from kd_lightning.errors import ConfigError, DataError, TrainingError
from kd_lightning.losses.density_ratio import CONSTANT
from kd_lightning.planning import pool_cost as plan_of_pools
from kd_lightning.planning.pool_cost import shortened
from kd_lightning.sources import synthetic
from kd_lightning.sources.context import Context
from kd_lightning.sources.pool_choice import choice, most_below, smallest
from kd_lightning.sources.quality_gates import errors_of
from kd_lightning.sources.queried_once import count_classes
from kd_lightning.sources.synthetic import Synthetic
from kd_lightning.store.artifacts import Store
from kd_lightning.teachers.white_box import FrozenTeacher

CLASSES = 4
METRES = Regression(low=0.0, high=10.0, unit="metres")


class Painter(nn.Module):
    """Images all of one grey: that of the label, and a little of z; every second one of another label's grey."""

    def __init__(self, *, labels: int, wrong: bool = False, bright: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([bright]))
        self.labels, self.wrong, self.asked = labels, wrong, 0

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.asked += len(y)
        y = y.float().clone()
        if self.wrong:
            y[::2] = self.labels - 1 - y[::2]
        grey = (y + 0.5) / self.labels + 0.02 * z[:, 0].clamp(-2, 2)
        return (self.scale * grey).clamp(0, 1).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


class Reader(nn.Module):
    """Reads the label of a grey back."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, x: Tensor) -> Tensor:
        place = x.flatten(1).mean(1, keepdim=True) * self.labels - 0.5
        return -4 * (place - torch.arange(self.labels)).abs() if self.labels > 1 else place


class Ratio(nn.Module):
    """Likelier real the larger z was; ``power`` 0: a constant."""

    def __init__(self, power: float, scale: float = 1.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        extra = x[:, 0, 0, 0] - (y.float() + 0.5) / CLASSES
        return self.scale * torch.exp(self.power * extra / 0.02)


def split(n: int, seed: int, task: Any) -> Split:
    rng = torch.Generator().manual_seed(seed)
    if isinstance(task, Classification):
        labels = torch.randint(CLASSES, (n,), generator=rng)
        grey = (labels + 0.5) / CLASSES
    else:
        labels = torch.randint(11, (n,), generator=rng).float()
        grey = task.normalise(labels) + 0.5
    return Split((grey * 255).round().clamp(0, 255).byte().view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), labels)


def at(folder: Path, task: Any = None, *, teacher: bool = True, **changes: Any) -> Context:
    task = task or Classification(CLASSES)
    names = list("abcd") if isinstance(task, Classification) else []
    dataset = Dataset("toy", names, split(80, 1, task), split(40, 2, task), None, "none", "none", task=task)
    settings = {
        "dataset": dataset,
        "teacher": FrozenTeacher(Reader(CLASSES if names else 1)) if teacher else None,
        "store": Store(folder / "store"),
        "keys": {"data": "toy", "teacher": "toy"},
        "mean": [0.5],
        "std": [0.3],
    }
    return Context(**settings | changes)


def source(folder: Path, *, ratio: Ratio | None = None, **settings: Any) -> Synthetic:
    generator = settings.pop("generator", None) or Painter(labels=CLASSES)
    save_file(generator.state_dict(), folder / "generator.safetensors")
    if ratio is not None:
        save_file(ratio.state_dict(), folder / "ratio.safetensors")
        settings |= {"ratio": ratio, "ratio_weights": str(folder / "ratio.safetensors"), "burn_in": 100, "draw": 50}
    defaults = {"latent": 2, "per_label": 50, "batch_size": 16, "subsample": ratio is not None}
    weights = str(folder / "generator.safetensors")
    return Synthetic(generator=generator, weights=weights, **defaults | settings)


@pytest.fixture(autouse=True)
def calm() -> Any:
    """Gates that fail are tested where they are meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*source.strict=true makes that an error")
        yield


def test_as_many_of_every_label_as_wanted_and_the_real_ones_before_them(tmp_path: Path) -> None:
    context = at(tmp_path)
    loader = source(tmp_path).prepare(context)
    real = context.real()
    assert len(loader.images) == 80 + 200
    assert torch.equal(loader.images[:80], real.images)
    assert torch.equal(loader.labels[:80], real.labels)
    assert torch.equal(loader.labels[80:], torch.arange(CLASSES).repeat_interleave(50))
    assert loader.labels.dtype == torch.int64
    greys = loader.images[80:].float().mean((1, 2, 3)) / 255
    assert (greys - (loader.labels[80:] + 0.5) / CLASSES).abs().max() < 0.05
    assert context.notes["images_synthesised"] == 200
    assert context.teacher.asked == 0


def test_without_the_real_ones(tmp_path: Path) -> None:
    assert len(source(tmp_path, real=False).prepare(at(tmp_path)).images) == 200


def test_the_pool_is_drawn_once_for_all_variants_and_anew_for_another_seed(tmp_path: Path) -> None:
    first = source(tmp_path)
    images = first.prepare(at(tmp_path)).images
    assert first.generator.asked == 200
    for changes in ({}, {"keep": 0.5}, {"images": 40}, {"batch_size": 8}):
        again = source(tmp_path, **changes)
        loader = again.prepare(at(tmp_path))
        assert again.generator.asked == 0
        if not changes:
            assert torch.equal(loader.images, images)
    assert len(list((tmp_path / "store").glob("pool-*/grid.png"))) == 1
    for changes in ({"seed": 1}, {"generator": Painter(labels=CLASSES, bright=0.9)}, {"per_label": 49}):
        another = source(tmp_path, **changes)
        another.prepare(at(tmp_path))
        assert another.generator.asked > 0


def test_what_the_filter_leaves_is_what_the_teacher_believes(tmp_path: Path) -> None:
    liar = Painter(labels=CLASSES, wrong=True)
    everything, kept = (
        source(tmp_path, generator=liar, keep=keep, real=False).prepare(at(tmp_path)) for keep in (None, 0.5)
    )
    reader = Reader(CLASSES)
    right = [
        float((reader(loader.images.float() / 255).argmax(1) == loader.labels).float().mean())
        for loader in (everything, kept)
    ]
    assert right[0] == 0.5
    assert right[1] == 1.0
    assert torch.bincount(kept.labels).tolist() == [25, 25, 25, 25]


def test_what_is_chosen_keeps_its_label_and_classes_lose_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "PER_PART", 100)
    chosen = source(tmp_path, keep=0.9, images=100, real=False).prepare(at(tmp_path))
    greys = chosen.images.float().mean((1, 2, 3)) / 255
    assert (greys - (chosen.labels + 0.5) / CLASSES).abs().max() < 0.05
    numbers = source(tmp_path, generator=Painter(labels=1), images=100, real=False).prepare(at(tmp_path, METRES))
    read = METRES.numbers(Reader(1)(numbers.images.float() / 255))
    assert (read - numbers.labels).abs()[numbers.labels < 4.5].max() < 0.5  # beyond, a grey is cut off at white
    kept = source(tmp_path, keep=0.9, real=False).prepare(at(tmp_path))
    plain = source(tmp_path, real=False).prepare(at(tmp_path))
    errors = errors_of(Classification(CLASSES), Reader(CLASSES)(plain.images.float() / 255), plain.labels)
    stays, others = (smallest(errors, plain.labels, 0.9, each=each) for each in (True, False))
    assert torch.equal(kept.images, plain.images[stays])
    assert not torch.equal(stays, others)


def test_the_classes_of_all_parts_are_counted_once_whether_asked_or_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "PER_PART", 100)
    for _ in range(2):
        source(tmp_path, keep=0.9, real=False).prepare(context := at(tmp_path))
        assert context.notes["class_counts"] == {"made images": {"rarest": 50, "commonest": 50, "each": [50] * CLASSES}}


def test_counts_of_parts_asked_about_one_after_the_other_add_up(tmp_path: Path) -> None:
    context = at(tmp_path)
    for rows in ([0, 0, 1], [1, 3]):
        count_classes(context, "images", torch.eye(CLASSES)[rows])
    count_classes(context, "others", torch.eye(CLASSES)[[2]])
    assert context.notes["class_counts"]["images"] == {"rarest": 0, "commonest": 2, "each": [2, 2, 0, 1]}
    assert context.notes["class_counts"]["others"]["each"] == [0, 0, 1, 0]


def test_classes_may_get_the_teachers_own(tmp_path: Path) -> None:
    liar = Painter(labels=CLASSES, wrong=True)
    told = source(tmp_path, generator=liar, relabel=True, real=False).prepare(at(tmp_path))
    assert torch.equal(told.labels, Reader(CLASSES)(told.images.float() / 255).argmax(1))


def test_numbers_get_the_teachers_own_and_lose_the_worst_of_all(tmp_path: Path) -> None:
    generator = Painter(labels=1)
    context = at(tmp_path, METRES)
    plain = source(tmp_path, generator=generator, labels=21, real=False).prepare(context)
    torch.testing.assert_close(plain.labels.unique(), torch.linspace(0, 10, 21))
    own = METRES.numbers(Reader(1)(plain.images.float() / 255))
    errors = (own - plain.labels).abs()
    told = source(tmp_path, generator=generator, labels=21, keep=0.7, relabel=True, real=False).prepare(context)
    stays = errors < torch.quantile(errors, 0.7)
    assert len(told.images) == int(stays.sum())
    assert torch.equal(told.images, plain.images[stays])
    torch.testing.assert_close(told.labels, own[stays])
    assert told.labels.min() >= 0
    assert told.labels.max() <= 10
    joined = source(tmp_path, generator=generator, keep=0.7, relabel=True).prepare(context)
    assert joined.labels.dtype == torch.float32


def test_the_labels_of_a_pool_of_numbers_are_those_of_the_training_images(tmp_path: Path) -> None:
    context = at(tmp_path, METRES)
    pool = source(tmp_path, generator=Painter(labels=1), real=False).prepare(context)
    assert torch.equal(pool.labels.unique(), context.real().labels.unique())


def test_the_papers_variants_are_names_for_the_switches(tmp_path: Path) -> None:
    settings = {"ratio": Ratio(1.0), "keep": 0.7}
    found = {
        name: (variant.ratio is not None, variant.keep, variant.relabel)
        for name in ("unprocessed", "subsampled", "filtered", "replaced")
        if (variant := source(tmp_path, processing=name, **settings))
    }
    assert found == {
        "unprocessed": (False, None, False),
        "subsampled": (True, None, False),
        "filtered": (True, 0.7, False),
        "replaced": (True, 0.7, True),
    }


def test_subsampling_takes_what_the_ratio_says(tmp_path: Path) -> None:
    context = at(tmp_path)
    settings = {"per_label": 400, "real": False}
    plain = source(tmp_path, **settings).prepare(context)
    chosen = source(tmp_path, ratio=Ratio(1.0), **settings).prepare(context)
    extra = [
        float((p.images.float().mean((1, 2, 3)) / 255 - (p.labels + 0.5) / CLASSES).mean() / 0.02)
        for p in (plain, chosen)
    ]
    assert abs(extra[0]) < 0.1
    assert 0.65 < extra[1] < 1.05  # a normal times e^z is a normal about 1; here it is cut off at 2
    assert torch.bincount(chosen.labels).tolist() == [400] * CLASSES


def test_a_white_teacher_answers_a_pool_once(tmp_path: Path) -> None:
    first, again = at(tmp_path), at(tmp_path)
    source(tmp_path, keep=0.9).prepare(first)
    (folder,) = (file.parent for file in (tmp_path / "store").glob("labels-*/artifact.json"))
    save_file({"answers": -load_file(folder / "answers.safetensors")["answers"]}, folder / "answers.safetensors")
    loader = source(tmp_path, keep=0.9, relabel=True, real=False).prepare(again)
    assert first.teacher.asked == again.teacher.asked == 200
    assert first.notes["queries"] == again.notes["queries"] == 200
    right = (Reader(CLASSES)(loader.images.float() / 255).argmax(1) == loader.labels).float().mean()
    assert right == 0, "the kept answers are those that were turned about"
    source(tmp_path, keep=0.9).prepare(at(tmp_path, keys={"data": "toy", "teacher": "another"}))
    assert len(list((tmp_path / "store").glob("labels-*/artifact.json"))) == 2


def settings_of(pool: Synthetic) -> Node:
    return Node("a.Pool", {"labels": pool.labels, "per_label": pool.per_label, "keep": pool.keep})


@pytest.mark.parametrize("keep", [None, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("task", [Classification(CLASSES), METRES], ids=["classes", "numbers"])
def test_a_plan_knows_how_long_an_epoch_will_be(
    task: Any, keep: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "errors_of", lambda task, answers, labels: torch.arange(float(len(labels))))
    generator = Painter(labels=CLASSES if isinstance(task, Classification) else 1)
    labels = None if isinstance(task, Classification) else 30
    settings: dict[str, Any] = {"generator": generator, "keep": keep, "labels": labels, "batch_size": 7}
    pool = source(tmp_path, **settings)
    context = at(tmp_path, task)
    planned = settings_of(pool)
    small, longer = shortened(planned, pool, context)
    short = source(tmp_path, **settings | {k: small[k] for k in ("labels", "per_label", "keep")}).prepare(context)
    assert len(short) * longer == pytest.approx(len(pool.prepare(context)), abs=1e-9)
    assert len(short.images) < 80 + 4 * 7 + 16
    with pytest.raises(DataError, match=r"raise source\.per_label or source\.keep"):
        shortened(planned, source(tmp_path, **settings, images=pool.per_label * 31), context)


def test_a_pools_outlook_counts_what_is_drawn_and_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(pool: Synthetic) -> float:
        clock = iter(range(0, 1000, 50))
        monkeypatch.setattr(plan_of_pools, "_now", lambda context: float(next(clock)))
        return plan_of_pools.outlook(pool, context).drawing

    context = at(tmp_path)
    assert seconds(source(tmp_path)) == pytest.approx(CLASSES * 50)  # a second an image
    everything = source(tmp_path, ratio=Ratio(0.0), per_label=120)
    assert seconds(everything) == pytest.approx(CLASSES * (100 + 150))  # of the burn-in and three draws
    assert seconds(source(tmp_path, ratio=Ratio(8.0), per_label=120)) > CLASSES * (100 + 300)
    asking = plan_of_pools.outlook(source(tmp_path, keep=0.9), context)
    assert (asking.asked, asking.size, asking.answers_size) == (200, 200 * (16 + 8), 200 * 16)
    assert asking.answering == pytest.approx(200)
    assert plan_of_pools.outlook(source(tmp_path), context).asked == 0
    assert context.teacher.asked == 0


def test_a_dead_ratio_ends_with_a_word(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="greatest density ratio"):
        source(tmp_path, ratio=Ratio(0.0, scale=0.0)).prepare(at(tmp_path))


def gates(context: Context) -> dict[str, Any]:
    return context.notes["pool"]["gates"]


def test_the_gates_of_a_ratio_that_knows_nothing(tmp_path: Path) -> None:
    context = at(tmp_path)
    with pytest.warns(UserWarning, match=r"softplus loss held out -1\.313, wanted under -1\.3233: the ratio is no"):
        source(tmp_path, ratio=Ratio(0.0)).prepare(context)
    found = gates(context)
    assert found["acceptance_rate"] == {"value": 1.0, "passed": True}
    assert found["mean_ratio_of_made_images"]["value"] == pytest.approx(1.0)
    assert found["softplus_loss_held_out"]["value"] == pytest.approx(CONSTANT, abs=1e-6)
    with pytest.raises(TrainingError, match="not worth training on"):
        source(tmp_path, ratio=Ratio(0.0), strict=True).prepare(at(tmp_path))


def test_the_gates_of_ratios_that_are_none(tmp_path: Path) -> None:
    context = at(tmp_path)
    with pytest.warns(UserWarning, match=r"mean ratio of made images 3, wanted 0\.8 to 1\.2: it is not a ratio"):
        source(tmp_path, ratio=Ratio(0.0, scale=3.0)).prepare(context)
    context = at(tmp_path)
    with pytest.warns(UserWarning, match="acceptance rate .* the ratio is far greater on a few images"):
        source(tmp_path, ratio=Ratio(8.0), per_label=5).prepare(context)
    assert not gates(context)["acceptance_rate"]["passed"]


def test_labels_that_the_teacher_does_not_believe_are_a_gate(tmp_path: Path) -> None:
    context = at(tmp_path)
    with pytest.warns(UserWarning, match="teacher's error on made images .* twice that on real ones: the generator's"):
        source(tmp_path, generator=Painter(labels=CLASSES, wrong=True), keep=0.9).prepare(context)
    assert context.teacher.asked == 200, "the real images of a gate are not counted"
    honest = at(tmp_path)
    source(tmp_path, keep=0.9, seed=1, strict=True).prepare(honest)
    assert gates(honest)["teacher_error_on_made_images"]["passed"]


def test_a_choice_is_equally_many_of_each_and_of_the_last_the_rest(tmp_path: Path) -> None:
    groups = torch.arange(100).repeat_interleave(1001)
    chosen = groups[choice(groups, 100_001, torch.Generator().manual_seed(0))]
    assert torch.bincount(chosen).tolist() == [1000] * 99 + [1001]
    with pytest.raises(DataError, match=r"source\.images=220 takes 55 of each label, but of one only 50 are left"):
        source(tmp_path, images=220).prepare(at(tmp_path))
    loader = source(tmp_path, images=42, real=False).prepare(at(tmp_path))
    assert torch.bincount(loader.labels).tolist() == [10, 10, 10, 12]


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 2, 11, 100, 600, 601])
def test_what_a_filter_leaves_is_known_before(n: int, share: float) -> None:
    errors = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert smallest(errors, torch.zeros(n), share, each=True).sum() == most_below(n, share)


def test_the_quantile_is_strict_nested_and_never_empty() -> None:
    zeros = torch.zeros(10, dtype=torch.long)
    assert smallest(torch.arange(10.0), zeros, 0.9, each=True).sum() == 9  # the cut-off is 8.1
    assert smallest(torch.arange(100.0), torch.zeros(100), 0.7, each=False).sum() == 70
    assert smallest(torch.arange(10.0), zeros, 1.0, each=True).tolist() == [True] * 9 + [False]
    assert smallest(torch.full((10,), 0.3), zeros, 0.5, each=True).all()
    errors, labels = torch.rand(500, generator=torch.Generator().manual_seed(0)), torch.arange(500) % 5
    few, many = (smallest(errors, labels, share, each=True) for share in (0.4, 0.8))
    assert (few <= many).all()


def test_each_class_loses_the_same_part_and_numbers_lose_where_the_errors_are() -> None:
    labels = torch.tensor([0, 1]).repeat_interleave(100)
    errors = torch.cat([torch.arange(100.0), 1000 + torch.arange(100.0)])
    for each, left in ((True, [90, 90]), (False, [100, 80])):
        stays = smallest(errors, labels, 0.9, each=each)
        assert [int(stays[labels == k].sum()) for k in (0, 1)] == left


def test_errors_are_cross_entropies_and_distances_in_the_unit() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1])
    torch.testing.assert_close(errors_of(Classification(2), logits, labels), torch.tensor([2.0, 4.0]).log())
    off = errors_of(METRES, torch.tensor([[0.5], [1.7], [-0.1]]), torch.tensor([4.0, 10.0, 1.0]))
    torch.testing.assert_close(off, torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0.0}, "source.keep=0.0: expected a part"),
        ({"keep": 1.1}, "source.keep=1.1: expected a part"),
        ({"subsample": True}, "needs source.ratio and source.ratio_weights"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        source(tmp_path, **settings)


@pytest.mark.parametrize("settings", [{"keep": 0.9}, {"relabel": True}])
def test_nobody_to_ask(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="query a teacher, but teacher=none"):
        source(tmp_path, **settings).prepare(at(tmp_path, teacher=False))
    assert len(source(tmp_path).prepare(at(tmp_path, teacher=False)).images) == 280


class Another(Painter):
    """Paints with other code, of the same weights."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return 1 - super().forward(z, y)


class Tanh(Painter):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return super().forward(z, y) * 2 - 1


def test_other_code_of_a_generator_is_another_pool(tmp_path: Path) -> None:
    for kind in (Painter, Another, Another):
        made = source(tmp_path)
        made.generator = kind(labels=CLASSES)
        made.prepare(at(tmp_path))
    assert len(list((tmp_path / "store").glob("pool-*/artifact.json"))) == 2


def test_images_outside_their_range_are_named(tmp_path: Path) -> None:
    made = source(tmp_path)
    made.generator = Tanh(labels=CLASSES)
    with pytest.raises(DataError, match=r"generator Tanh makes images in \[-0.*expected \[0, 1\]"):
        made.prepare(at(tmp_path))
