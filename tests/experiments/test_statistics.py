"""Means over seeds and differences within them, against scipy and by hand."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from greats_jax.experiments.statistics import holm, interval, paired_difference

SEEDS = [2.31, 2.28, 2.40, 2.25, 2.33]


def test_an_interval_is_scipys_bca_bootstrap():
    found = interval(SEEDS)
    expected = stats.bootstrap(
        (np.array(SEEDS),), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    assert (found.mean, found.n) == (pytest.approx(np.mean(SEEDS)), 5)
    assert found.low == pytest.approx(expected.low, abs=0.003)
    assert found.high == pytest.approx(expected.high, abs=0.003)
    assert found.low < found.mean < found.high
    assert interval(SEEDS) == found  # no randomness of its own


@pytest.mark.parametrize("values", [[], [1.5], [1.0, 2.0]])
def test_too_few_values_have_a_mean_and_no_limits(values):
    found = interval(values)
    assert found.n == len(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(found.mean) if not values else found.mean == np.mean(values)


def test_values_that_are_equal_or_not_finite():
    assert interval([3.0] * 4) == (3.0, 3.0, 3.0, 4)
    assert interval([3.0, math.nan, 3.0, math.inf, 3.0]) == (3.0, 3.0, 3.0, 3)
    nearly = interval([1e6, 1e6 + 1e-9, 1e6, 1e6])  # equal but for rounding
    assert nearly.low == nearly.high


def test_a_large_mean_does_not_hide_a_small_spread():
    far, near = interval([1e6 + x for x in SEEDS]), interval(SEEDS)
    assert far.high - far.low == pytest.approx(near.high - near.low, rel=1e-3)


def test_a_paired_difference_is_scipys_paired_t_test():
    one, other = SEEDS, [2.35, 2.30, 2.47, 2.24, 2.41]
    found = paired_difference(one, other)
    expected = stats.ttest_rel(one, other)
    limits = expected.confidence_interval(0.95)
    assert found == pytest.approx((np.mean(one) - np.mean(other), limits.low, limits.high, expected.pvalue, 5))


def test_pairs_with_a_missing_side_are_left_out():
    assert paired_difference([1.0, 2.0, math.nan, 4.0], [0.5, math.nan, 1.0, 3.0]).n == 2
    nothing = paired_difference([math.nan], [1.0])
    assert (nothing.n, math.isnan(nothing.mean), math.isnan(nothing.p)) == (0, True, True)


def test_differences_without_spread():
    assert paired_difference([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0, 0.0, 1.0, 2)
    assert paired_difference([2.0, 3.0], [1.0, 2.0]) == (1.0, 1.0, 1.0, 0.0, 2)
    assert math.isnan(paired_difference([2.0], [1.0]).p)


def test_holms_adjustment():
    # By hand: 0.01 * 4; then the largest so far of 0.02 * 3, 0.03 * 2 and 0.5 * 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    known, missing = holm([0.04, math.nan])
    assert (known, math.isnan(missing)) == (0.04, True)  # a test that was not made does not count


def found_by_holm(draws: np.ndarray) -> float:
    """How often the first of several methods has an adjusted p below 0.05, of differences [draws, methods, seeds]."""
    raw = stats.ttest_rel(draws, np.zeros_like(draws), axis=-1).pvalue
    return float(np.mean([holm(row)[0] < 0.05 for row in raw]))


@pytest.mark.slow
def test_what_so_many_seeds_can_show(repository):
    """Every row of the table in docs/comparing.md, by simulation with normal spread."""
    page = (repository / "docs" / "comparing.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) % \| (\d+) % \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert [int(seeds) for seeds, *_ in rows] == [3, 5, 10, 20]
    for seeds, of_bootstrap, of_student, alone, one_of_five in rows:
        rng = np.random.default_rng(1)
        draws = rng.normal(size=(1000, int(seeds)))
        for limits, stated in (
            ([interval(row) for row in draws], of_bootstrap),
            ([paired_difference(row, np.zeros(len(row))) for row in draws], of_student),
        ):
            held = 100 * np.mean([found.low <= 0 <= found.high for found in limits])
            assert held == pytest.approx(int(stated), abs=4)  # three standard errors
        for methods, effect in ((1, alone), (5, one_of_five)):
            differences = rng.normal(size=(1000, methods, int(seeds)))
            differences[:, 0] += float(effect)
            assert 0.75 < found_by_holm(differences) < 0.87
