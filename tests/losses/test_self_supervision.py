"""SSKD's losses: slow references, and which of the teacher's errors are imitated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.losses.logits import multi_level
from kd_lightning.losses.response import kl
from kd_lightning.losses.self_supervision import answers_to_views, least_wrong, similarities, which_image

N, VIEWS = 3, 4


def rows(width: int, seed: int) -> Tensor:
    return torch.randn(VIEWS * N, width, generator=torch.Generator().manual_seed(seed))


def cosines(embeddings: Tensor) -> list[list[float]]:
    """Of every turned image with every image, in loops."""
    return [
        [
            float(turned @ image) / (math.hypot(*turned.tolist()) * math.hypot(*image.tolist()))
            for image in embeddings[:N]
        ]
        for turned in embeddings[N:]
    ]


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def test_they_equal_loops() -> None:
    s, t = rows(5, 0), rows(7, 1)
    found = [-math.log(softmax(row)[i % N]) for i, row in enumerate(cosines(s))]
    assert which_image(s).item() == pytest.approx(sum(found) / len(found), rel=1e-5)
    divergences = []
    for own, told in zip(cosines(s), cosines(t), strict=True):
        q, p = softmax([v / 0.5 for v in own]), softmax([v / 0.5 for v in told])
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    expected = 0.25 * sum(divergences) / len(divergences)
    assert similarities(s, t, wrong=1.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_least_wrong_are_kept() -> None:
    answers = torch.tensor([[3.0, 1, 2], [1, 2, 3], [2, 3, 1], [3, 2, 1]])
    labels = torch.tensor([0, 0, 0, 2])  # right, third, second, third
    for share, kept in ((0.0, [0]), (0.34, [0, 2]), (1.0, [0, 1, 2, 3])):
        assert least_wrong(answers, labels, share).nonzero().flatten().tolist() == kept


def test_answers_to_the_images_themselves_are_left_out() -> None:
    s, t, labels = rows(5, 0), rows(5, 1), torch.tensor([0, 1, 2]).repeat(VIEWS)
    loss = answers_to_views(s, t, labels=labels)
    torch.testing.assert_close(loss, kl(s[N:], t[N:], temperature=4.0))
    right = 9 * F.one_hot(labels, 5) + t  # no error to leave out
    torch.testing.assert_close(
        answers_to_views(s, right, labels=labels, wrong=0.0), kl(s[N:], right[N:], temperature=4.0)
    )


def test_equal_rows_cost_nothing_and_the_order_of_images_does_not_matter() -> None:
    s, t, labels = rows(5, 0), rows(5, 1), torch.tensor([0, 1, 2]).repeat(VIEWS)
    order = (torch.tensor([2, 0, 1]) + N * torch.arange(VIEWS)[:, None]).flatten()
    for loss in (lambda a, b, y: similarities(a, b, wrong=1.0), lambda a, b, y: answers_to_views(a, b, labels=y)):
        assert loss(t, t, labels).item() == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(loss(s[order], t[order], labels[order]), loss(s, t, labels))
        half = loss(s.bfloat16(), t.bfloat16(), labels)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, loss(s, t, labels), rtol=0.1, atol=0.01)
    with pytest.raises(ValueError, match="expected 4 rows for each image, got 11"):
        which_image(s[:-1])


def test_mlkd_adds_its_views() -> None:
    s, t = rows(5, 0), rows(5, 1)
    both = multi_level(s[:6], t[:6]) + multi_level(s[6:], t[6:])
    torch.testing.assert_close(multi_level(s, t, views=2), both)
    assert not torch.isclose(multi_level(s, t), both)


def test_mlkd_of_the_authors_code_equals_loops() -> None:
    """A teacher is unsure of 3 of 6 images, and 3 of 5 classes it expects at most as often as the median one."""
    (s, s_strong), (t, t_strong) = rows(5, 0).chunk(2), rows(5, 1).chunk(2)
    expected = 0.0
    for degree in (2.0, 3.0, 4.0, 5.0, 6.0):
        q, p = ([softmax([v / degree for v in row]) for row in z.tolist()] for z in (s, t))
        weak, strong = kl(s, t, temperature=degree).item(), kl(s_strong, t_strong, temperature=degree).item()
        for own, told, share, over in ((q, p, 3 / 6, 6), ([*zip(*q)], [*zip(*p)], 3 / 5, 5)):  # noqa: B905
            apart = ([sum(map(math.prod, zip(a, b, strict=True))) for a in z for b in z] for z in (own, told))
            expected += share * sum((x - y) ** 2 for x, y in zip(*apart, strict=True)) / over
        expected += 3 / 6 * weak + (weak if degree in (2, 6) else strong)
    given = torch.cat([s, s_strong]), torch.cat([t, t_strong])
    assert multi_level(*given, views=2, variant="code").item() == pytest.approx(expected, rel=1e-5)
    assert multi_level(given[1], given[1], views=2, variant="code").item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="variant=code compares two views, got 1"):
        multi_level(*given, variant="code")
