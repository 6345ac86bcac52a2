"""Means over seeds, differences within seeds, and how sure either is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES = 9999
_FEWEST = 3  # values that an interval can be made from


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: Mean of the values; NaN of none.
        low: Lower limit; NaN where there are fewer than three values.
        high: Upper limit, likewise.
        n: How many values.
    """

    mean: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """A mean difference within pairs, its 95 % confidence interval and what a paired test says of it.

    Attributes:
        mean: Mean of one minus other; NaN of no pair.
        low: Lower limit, by Student's t; NaN where there are fewer than two pairs.
        high: Upper limit, likewise.
        p: Of the paired t-test, two-sided: how often as large a difference comes about where there is none.
        n: How many pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean with a 95 % bootstrap interval (bias-corrected and accelerated; Efron 1987), f[n] -> Interval.

    Values that are not finite are left out. Equal values give an interval of no width; fewer than three give none. The
    draws are the same at every call.

    Cost: about 10,000 means.
    """
    finite = _finite(values)
    if not len(finite):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(finite.mean())
    if len(finite) < _FEWEST:
        return Interval(mean, math.nan, math.nan, len(finite))
    if np.ptp(finite) <= 1e-12 * max(1.0, abs(mean)):
        return Interval(mean, mean, mean, len(finite))
    # Around 0, so that a small spread about a large mean is not lost in rounding.
    found = stats.bootstrap(
        (finite - mean,), np.mean, n_resamples=_RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(mean, mean + float(found.low), mean + float(found.high), len(finite))


def paired_difference(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> Difference:
    """Mean of one minus other, pair by pair, with Student's interval and the paired t-test.

    Args:
        one: A value for each seed, f[n].
        other: The value of the same seeds, f[n]; pairs with a value that is not finite are left out.
    """
    differences = _finite(np.asarray(one, np.float64) - np.asarray(other, np.float64))
    count = len(differences)
    if not count:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(differences.mean())
    if count < 2:
        return Difference(mean, math.nan, math.nan, math.nan, count)
    if np.ptp(differences) == 0:  # no spread: t is 0/0 or infinite
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, count)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return Difference(mean, mean - reach, mean + reach, p, count)


def holm(probabilities: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Holm 1979): any below 0.05 is sound with 95 % for all together.

    NaN stays NaN, and does not count as a test.
    """
    values = np.asarray(probabilities, np.float64)
    adjusted = np.full(len(values), np.nan)
    known = [int(i) for i in np.argsort(values, kind="stable") if not math.isnan(values[i])]
    highest = 0.0
    for rank, index in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted.tolist()


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]
