"""Curves of several seeds as one: their mean, and how sure it is."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from greats_jax.experiments.curves import Curve
from greats_jax.experiments.statistics import interval

_POINTS = 24  # places at which curves are read that were not measured at the same ones


class Band(NamedTuple):
    """A mean over seeds along an axis.

    Attributes:
        places: f64[p]; updates, seconds or candidates.
        mean: f64[p].
        low: f64[p]; lower limit of the 95 % bootstrap interval; NaN for fewer than three seeds.
        high: f64[p]; upper limit.
        seeds: f64[s, p]; the seeds one by one.
    """

    places: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray


AXES: dict[str, Callable[[Curve], np.ndarray]] = {
    "steps": lambda curve: curve.steps,
    "seconds": lambda curve: curve.seconds,
    "candidates": lambda curve: curve.candidates,
}
"""What a curve can be read against."""


def band(curves: Sequence[Curve], metric: str, axis: str) -> Band | None:
    """The mean of one method's curves in one setting; None where the metric was measured less than twice.

    Seeds that ended without a finite value are left out, unless all did. Where the others were measured at the same
    places these are taken, else evenly spaced ones up to where the first curve ends; between two evaluations a curve is
    the straight line that joins them.
    """
    measured = []
    ended = [curve for curve in curves if metric in curve.metrics and np.isfinite(curve.metrics[metric][-1:]).any()]
    for curve in ended or curves:  # a seed that diverged would end the others' curve where its own does
        values = curve.metrics.get(metric)
        if values is not None and (known := np.isfinite(values)).sum() > 1:
            measured.append((AXES[axis](curve)[known].astype(np.float64), values[known]))
    if not measured:
        return None
    first = measured[0][0]
    if all(len(places) == len(first) and (places == first).all() for places, _ in measured):
        places = first
    else:
        end = min(places[-1] for places, _ in measured)
        places = np.linspace(max(places[0] for places, _ in measured), end, _POINTS)
    seeds = np.array([np.interp(places, own, values) for own, values in measured])
    found = [interval(column) for column in seeds.T]
    mean, low, high = (np.array([getattr(one, name) for one in found]) for name in ("mean", "low", "high"))
    return Band(places, mean, low, high, seeds)
