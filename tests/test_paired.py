import numpy as np
import pytest
from scipy import stats

from kd_lightning.results.paired import Difference, paired_difference


@pytest.mark.parametrize(("n", "level"), [(2, 0.95), (3, 0.95), (5, 0.9), (12, 0.99)])
def test_mean_and_interval_are_those_of_scipys_paired_t_test(n, level):
    ours, theirs = np.random.default_rng(n).normal([[0.97], [0.95]], 0.02, (2, n))
    found = paired_difference(dict(enumerate(ours.tolist())), dict(enumerate(theirs.tolist())), level)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(level)
    np.testing.assert_allclose(found[:3], [np.mean(ours - theirs), low, high], rtol=1e-9)
    assert found.n == n


def test_values_are_paired_by_seed_and_seeds_of_one_side_do_not_count():
    found = paired_difference({0: 0.5, 1: 0.7, 7: 9.0}, {1: 0.6, 0: 0.3, 2: 9.0})
    assert found.n == 2
    assert found.mean == pytest.approx(0.15)


def test_one_common_seed_has_no_interval_and_no_verdict():
    found = paired_difference({0: 0.5, 1: 0.9}, {0: 0.25})
    assert found == Difference(0.25, None, None, 1)
    assert found.verdict() == ""
    assert found.in_words(2) == "+0.25"
    assert Difference(-0.00001, None, None, 1).in_words(2) == "+0.00", "nothing is less than nothing"


def test_no_common_seed_and_an_impossible_level_are_refused():
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="level 95"):
        paired_difference({0: 1.0}, {0: 1.0}, level=95)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "of_errors"),
    [
        (0.01, 0.03, "better", "worse"),
        (-0.03, -0.01, "worse", "better"),
        (-0.01, 0.03, "not shown", "not shown"),
        (0.0, 0.04, "not shown", "not shown"),
    ],
)
def test_better_is_said_only_where_the_interval_excludes_zero(low, high, verdict, of_errors):
    difference = Difference((low + high) / 2, low, high, 3)
    assert difference.verdict() == verdict
    assert difference.verdict(less_is_better=True) == of_errors
    assert difference.in_words(2) == f"{difference.mean:+.2f} ({low:+.2f} to {high:+.2f})"
