"""Active mixup asks about the mixes that a student is least sure of, and about none twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_few_asked import CLASSES, Server, bytes_of, context, dataset
from torch import Tensor

from kd_lightning.core.inference import predict
from kd_lightning.errors import DataError
from kd_lightning.networks.classifiers.small import SmallConvNet
from kd_lightning.networks.normalized import Normalized
from kd_lightning.sources.active_mixup import ActiveMixup, both_of, candidates, least_sure
from kd_lightning.sources.few_shot_queried import FewAsked


def network() -> SmallConvNet:
    return SmallConvNet(num_classes=CLASSES, widths=(4,))


@pytest.fixture
def students(tmp_path: Path) -> list[str]:
    """Three students that nobody has trained."""
    files = []
    for seed in range(3):
        torch.manual_seed(seed)
        files.append(str(tmp_path / f"student{seed}.safetensors"))
        save_file(Normalized(network(), mean=[0.4], std=[0.2]).state_dict(), files[-1])
    return files


def source(students: Sequence[str], **settings: int) -> FewAsked:
    expand = ActiveMixup(network=network(), students=students, rounds=3, **settings)
    return FewAsked(per_class=4, batch_size=8, synthetic=31, expand=expand)


@pytest.mark.parametrize("few", [2, 3, 8, 9])
def test_every_pair_has_a_number(few: int) -> None:
    every = {tuple(sorted(pair)) for pair in zip(*both_of(np.arange(few * (few - 1) // 2), few), strict=True)}
    assert len(every) == few * (few - 1) // 2
    assert all(a != b for a, b in every)


def test_candidates_are_other_pairs_than_those_taken() -> None:
    taken = np.arange(20)
    for seed in range(5):
        drawn = candidates(8, 5, taken, np.random.default_rng(seed))
        assert len(set(drawn.tolist())) == 5
        assert not set(drawn.tolist()) & set(taken.tolist())
    assert sorted(candidates(8, 100, taken, np.random.default_rng(0)).tolist()) == [*range(20, 28)]


def test_each_pair_gets_the_weight_of_which_the_student_is_least_sure() -> None:
    def sure(x: Tensor) -> Tensor:
        """Torn between two classes at a mean of 0.4, the surer the further from it."""
        distance = 20 * (x.flatten(1).mean(1) - 0.4).abs()
        return torch.stack([distance, torch.zeros(len(x))], 1)

    few = torch.stack([torch.full((1, 4, 4), v, dtype=torch.uint8) for v in (0, 255, 102)])
    share, doubt = least_sure(sure, few, np.array([1, 1, 2]), np.array([0, 2, 2]), (0.3, 0.42, 0.66), "cpu")  # type: ignore[arg-type]
    assert share.tolist()[:2] == [0.42, 0.3]
    assert doubt[2] == pytest.approx(0.5, abs=1e-3)
    assert doubt[0] > doubt[1]


def test_it_asks_about_the_least_sure(tmp_path: Path, students: list[str]) -> None:
    few = dataset().train.images[:12]  # type: ignore[union-attr]
    expand = ActiveMixup(network=network(), students=students[:1], rounds=1)
    (made,) = expand(context(tmp_path, Server()), few, 10, 0)
    torch.manual_seed(0)
    student = Normalized(network(), mean=[0.4], std=[0.2])
    _, doubt = least_sure(student, few, *both_of(np.arange(66), 12), expand.shares, "cpu")
    sure = predict(student, made).softmax(1).amax(1)
    np.testing.assert_allclose(np.sort(sure.numpy()), np.sort(1 - doubt)[:10], atol=1e-6)


def test_each_stage_pays_for_one_round_and_no_pair_comes_twice(tmp_path: Path, students: list[str]) -> None:
    server, paid = Server(), []
    for rounds in range(4):
        at = context(tmp_path, server)
        few = FewAsked(per_class=4, batch_size=8, synthetic=31)
        loader = (source(students[:rounds]) if rounds else few).prepare(at)
        paid.append(len(server.seen) - sum(paid))
    assert paid == [12, 10, 10, 11]
    assert len(server.seen) == len(set(server.seen)) == 12 + 31
    assert bytes_of(loader.images) == server.seen
    source(students).prepare(context(tmp_path, server, order_seed=3))
    assert len(server.seen) == 12 + 31


def test_more_pairs_than_there_are(tmp_path: Path, students: list[str]) -> None:
    with pytest.raises(DataError, match=r"wants 10 further pairs of 12 images, but has 5 to choose from"):
        source(students, candidates=5).prepare(context(tmp_path, Server()))
