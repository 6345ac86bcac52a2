"""Correlation of two lists of numbers, and of their ranks."""

import math

import numpy as np
from numpy.typing import ArrayLike


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's correlation, -1 to 1; NaN where either list is constant, not finite or shorter than 2.

    Args:
        a: f[n].
        b: f[n].
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    # Scaled before squaring, so that numbers as small as 1e-200 still have a correlation.
    x, y = (v / (np.abs(v).max() or 1.0) for v in (x - x.mean(), y - y.mean()))
    length = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / length if length > 0 else math.nan


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation, -1 to 1; equal numbers share their mean rank. NaN as for `pearson`.

    Args:
        a: f[n]; infinities have ranks, NaN has none.
        b: f[n].
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    return pearson(ranks(x), ranks(y))


def ranks(values: ArrayLike) -> np.ndarray:
    """Rank of every number, f64[n], from 0 for the smallest; equal numbers share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]
