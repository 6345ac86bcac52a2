"""Correlations against their definitions."""

import math

import numpy as np
import pytest

from greats_jax.analysis import pearson, spearman
from greats_jax.analysis.correlation import ranks


def test_pearson_is_numpys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    assert pearson(a, a + b) == pytest.approx(np.corrcoef(a, a + b)[0, 1])


def test_spearman_sees_order_alone():
    assert spearman([1, 2, 30], [0.1, 0.2, 0.3]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([-np.inf, 0, np.inf], [1, 2, 3]) == pytest.approx(1)


def test_equal_numbers_share_their_mean_rank():
    assert ranks([5, 1, 5, 9]).tolist() == [1.5, 0, 1.5, 3]
    # By hand: ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3 have the covariance 4.5 and squared lengths 4.5 and 5.
    assert spearman([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize(
    ("a", "b"), [([1, 1, 1], [1, 2, 3]), ([1], [1]), ([], []), ([1, math.nan, 3], [1, 2, 3])], ids=str
)
def test_there_is_none_where_there_is_nothing_to_order(a, b):
    assert math.isnan(pearson(a, b))
    assert math.isnan(spearman(a, b))


def test_tiny_numbers_correlate():
    assert pearson([1e-200, 2e-200, 3e-200], [1, 2, 3]) == pytest.approx(1)
