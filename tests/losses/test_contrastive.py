"""InfoNCE: closed forms, and whom it pulls on."""

import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses.contrastive import info_nce


def test_closed_form() -> None:
    rows = torch.eye(4, 6)
    assert info_nce(rows, rows, temperature=0.1).item() == pytest.approx(math.log(1 + 3 * math.exp(-10)), rel=1e-3)
    same = rows[:1].expand(4, -1)
    assert info_nce(same, same, temperature=0.1).item() == pytest.approx(math.log(4))


def test_fresh_and_cached_rows_count_as_two_means() -> None:
    query, key = (F.normalize(torch.randn(7, 5)) for _ in range(2))
    losses = []
    for i in range(7):
        scores = [float(query[i] @ key[j]) / 0.2 for j in range(7)]
        losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[i])
    wanted = sum(losses[:3]) / 3 + sum(losses[3:]) / 4
    assert info_nce(query, key, temperature=0.2, fresh=3).item() == pytest.approx(wanted, rel=1e-5)
    # nothing cached yet: a plain mean, not that of an empty rest
    assert info_nce(query, key, temperature=0.2, fresh=7).item() == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert info_nce(query, key, temperature=0.2).item() == pytest.approx(sum(losses) / 7, rel=1e-5)


def test_only_the_query_is_pulled() -> None:
    query, key = (F.normalize(torch.randn(4, 5)).requires_grad_() for _ in range(2))
    info_nce(query, key).backward()
    assert query.grad is not None
    assert key.grad is None


def test_fp32_inside_and_no_query_without_its_key() -> None:
    rows = F.normalize(torch.randn(4, 5)).bfloat16()
    assert info_nce(rows, rows).dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(3, 5\)"):
        info_nce(rows, rows[:3])
