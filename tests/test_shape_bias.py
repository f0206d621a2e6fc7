"""Shape bias and background gap of hand-made logits, and the tables they need."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import DataError
from kd_lightning.metrics.shape_bias import background_gap, read_categories, read_table, shape_bias
from kd_lightning.networks.classifiers.invariant_ensemble import Heads


def sure(*classes: int, of: int = 6) -> Tensor:
    """Logits (N, of) that leave no doubt."""
    return 20 * torch.nn.functional.one_hot(torch.tensor(classes), of).float()


THREE = [[0, 1], [2, 3], [4, 5]]


def test_bias_counts_what_is_named_by_one_of_its_cues() -> None:
    """By the shape twice, by the texture once, by neither once; of equal cues nothing is learned."""
    logits = sure(0, 3, 5, 5, 0)
    shape, texture = torch.tensor([0, 1, 0, 0, 0]), torch.tensor([1, 2, 2, 1, 0])
    found = shape_bias(logits, shape, texture, categories=THREE)
    assert found == (pytest.approx(2 / 3), 2, 1, 4)


def test_a_category_is_as_likely_as_its_classes_are_on_average() -> None:
    """Not as their sum, or their likeliest."""
    probs = torch.tensor([[0.3, 0.1, 0.1, 0.1, 0.25, 0.15]])
    named = shape_bias(probs.log(), torch.tensor([0]), torch.tensor([1]), categories=[[0, 1, 2, 3], [4]])
    assert named == (0.0, 0, 1, 1)
    best = torch.tensor([[0.4, 0.0001, 0.25, 0.2499, 0.1, 0.0]]).clamp(min=1e-9)
    named = shape_bias(best.log(), torch.tensor([0]), torch.tensor([1]), categories=[[0, 1], [2, 3]])
    assert named.bias == 0


def test_logits_are_probabilities_before_they_are_averaged() -> None:
    logits = torch.tensor([[0.0, -1000.0, -2.0, -2.0, -30.0, -30.0]])
    assert shape_bias(logits, torch.tensor([0]), torch.tensor([1]), categories=THREE).bias == 1


def test_nothing_named_by_a_cue_is_no_bias() -> None:
    assert math.isnan(shape_bias(sure(4), torch.tensor([0]), torch.tensor([1]), categories=THREE).bias)


@pytest.mark.parametrize("categories", [[[0], []], [[0], [6]], [[-1], [1]]])
def test_categories_that_cannot_be(categories: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="every category needs a class, and all of them from 0 to 5"):
        shape_bias(sure(0), torch.tensor([0]), torch.tensor([1]), categories=categories)


def test_cues_for_other_images() -> None:
    with pytest.raises(ValueError, match="2 logits, 1 shapes and 2 textures"):
        shape_bias(sure(0, 1), torch.tensor([0]), torch.tensor([1, 1]), categories=THREE)


TABLE = torch.tensor([0, 0, 1, 1, 2, -1])


def test_gap_is_a_difference_of_accuracies() -> None:
    """A class outside the nine is a wrong answer; the last batch may be short."""
    same = sure(0, 1, 3, 5, 4), torch.tensor([0, 0, 1, 1, 2])
    rand = sure(0, 2, 5), torch.tensor([0, 0, 1])
    assert background_gap(same, rand, table=TABLE) == pytest.approx((0.8 - 1 / 3, 0.8, 1 / 3))


def test_gap_ignores_the_background_head() -> None:
    def gap(noise: float) -> float:
        heads = [Heads(logits, logits.roll(1, 1) / 2, noise * torch.randn(3, 6)) for logits in (sure(0, 2, 4), rand)]
        same, other = ((head.shape_texture, torch.tensor([0, 1, 2])) for head in heads)
        return background_gap(same, other, table=TABLE).gap

    rand = sure(0, 4, 2)
    assert gap(0.0) == gap(1e4) == pytest.approx(2 / 3)


def test_gap_of_what_does_not_fit() -> None:
    fits = sure(0), torch.tensor([0])
    for same in ((sure(0), torch.tensor([0, 1])), (sure(0, of=5), torch.tensor([0])), (sure(0)[:0], TABLE[:0])):
        with pytest.raises(ValueError, match=r"expected \(N, K\), N and K"):
            background_gap(same, fits, table=TABLE)


def nine(mapped: int = 370) -> dict[str, int]:
    return {str(k): k % 9 if k < mapped else -1 for k in range(1000)}


def written(folder: Path, content: object) -> Path:
    file = folder / "table.json"
    file.write_text(json.dumps(content))
    return file


def test_the_table_of_imagenet_9(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, dict(reversed(nine().items()))))
    assert table.shape == (1000,)
    assert int((table >= 0).sum()) == 370
    assert table[[0, 1, 369, 370, 999]].tolist() == [0, 1, 0, -1, -1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nine(369), "gives 369 classes a category, in ImageNet-9 370"),
        (nine() | {"7": 9}, "expected categories of 0 to 8"),
        (nine() | {"7": "1"}, "expected categories of 0 to 8"),
        (nine() | {"1000": -1}, "of each of 1000 classes"),
        ([1, 2], "of each of 1000 classes"),
    ],
)
def test_tables_that_are_none(content: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_table(written(tmp_path, content))


def test_categories_of_a_file(tmp_path: Path) -> None:
    content = {"airplane": [404], "bear": [294, 295]}
    assert read_categories(written(tmp_path, content)) == content
    for wrong in ({}, [404], {"airplane": []}, {"airplane": [1000]}, {"airplane": 404}, {"airplane": [True]}):
        with pytest.raises(DataError, match="expected categories and their classes"):
            read_categories(written(tmp_path, wrong))


@pytest.mark.parametrize("read", [read_table, read_categories])
def test_files_that_are_none(read: object, tmp_path: Path) -> None:
    assert callable(read)
    with pytest.raises(DataError, match=r"there is no file .*not part of this package"):
        read(tmp_path / "table.json")
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        read(tmp_path / "table.json")
