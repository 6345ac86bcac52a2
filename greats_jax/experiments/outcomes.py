"""What a comparison found: methods at equal updates, equal time and equal candidates, and how soon they got there."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from greats_jax.errors import ArgumentError
from greats_jax.experiments.curves import Curve
from greats_jax.experiments.statistics import Difference, Interval, holm, interval, paired_difference

REGULAR, RANDOM, TARGET_ONLY = "regular", "random_k", "target_only"


class Readings(NamedTuple):
    """The losses of one method in one setting, by seed: NaN of a seed that diverged, wherever its curve is read."""

    final: dict[int, float]
    equal_seconds: dict[int, float]
    equal_candidates: dict[int, float]


class Outcome(NamedTuple):
    """What one method came to in one setting. Losses are in nats per label token; exp of one is a perplexity.

    Attributes:
        setting: Value of the changing setting; "" where nothing changes.
        method: The method, as tables name it.
        final: The loss after equally many updates.
        equal_seconds: The loss after equal training time, seed by seed: that of the method which took the least of
            those that draw from the pool (see `Curve.draws`); of one that does not, its last loss where it has ended by
            then.
        equal_candidates: The loss after equally many candidates drawn, seed by seed. A method that draws none from the
            pool has an interval of no value.
        against_random: Difference of `final` to random_k, within seeds; p by Holm's method over the methods of the
            setting, for this difference alone. None for random_k itself and where there is no random_k.
        against_regular: The same to regular.
        against_random_in_time: The same of `equal_seconds` to random_k.
        against_regular_in_time: The same of `equal_seconds` to regular.
        steps_to_target: Updates until the loss was first as low as the target method's last, over the seeds that came
            there; None where none did.
        seconds_to_target: Training time until then.
        steps_share: The same updates over the target method's own number of updates, within seeds.
        seconds_share: The same time over the whole training time of the target method, within seeds.
        reached: Seeds that came there.
        aimed: Seeds in which there was something to reach: the target method ended lower than it began.
        n: Seeds whose last loss is finite, which means and intervals are over.
        diverged: Seeds whose last loss is not.
        scores: Everything else that was measured last, by name.
        metric: The loss that all of this is about.
        target: The method that had to be reached.
        by_seed: What the means of the three losses are of.
    """

    setting: str
    method: str
    final: Interval
    equal_seconds: Interval
    equal_candidates: Interval
    against_random: Difference | None
    against_regular: Difference | None
    against_random_in_time: Difference | None
    against_regular_in_time: Difference | None
    steps_to_target: Interval | None
    seconds_to_target: Interval | None
    steps_share: Interval | None
    seconds_share: Interval | None
    reached: int
    aimed: int
    n: int
    diverged: int
    scores: dict[str, Interval]
    metric: str
    target: str
    by_seed: Readings


class _Times(NamedTuple):
    """When a method came to the target, of the seeds that did."""

    steps: list[float]
    seconds: list[float]
    steps_share: list[float]
    seconds_share: list[float]
    aimed: list[int]


def headline_metric(curves: Sequence[Curve]) -> str:
    """The loss that a table is about: that of the test examples, or of the validation examples where there are none."""
    measured = [curve.metrics.get("test_loss", np.empty(0)) for curve in curves]
    return "test_loss" if any(np.isfinite(values).any() for values in measured) else "validation_loss"


def outcomes(curves: Sequence[Curve], metric: str | None = None, target: str = REGULAR) -> list[Outcome]:
    """The outcome of every method in every setting, in the order of the curves.

    A curve is read between two evaluations on the straight line that joins them.

    Args:
        curves: Of one comparison.
        metric: The loss compared; None for `headline_metric`.
        target: Whose last loss time-to-target is measured against.

    Raises:
        ArgumentError: Nothing of that name was measured.
    """
    metric = headline_metric(curves) if metric is None else metric
    if not curves or any(metric not in curve.metrics for curve in curves):
        known = ", ".join(curves[0].metrics) if curves else "none: there is no finished run"
        raise ArgumentError(f"metric: {metric!r} was not measured in every run; measured: {known}")
    found = []
    for setting in dict.fromkeys(curve.setting for curve in curves):
        found += _of_setting([curve for curve in curves if curve.setting == setting], metric, target)
    return found


def _of_setting(curves: Sequence[Curve], metric: str, target: str) -> list[Outcome]:
    methods = list(dict.fromkeys(curve.method for curve in curves))
    by = {(curve.method, curve.seed): curve for curve in curves}
    seeds = list(dict.fromkeys(curve.seed for curve in curves))
    # Only methods that have run with a seed can be compared within it.
    of_seed = {seed: [by[method, seed] for method in methods if (method, seed) in by] for seed in seeds}
    steps = {seed: min(int(curve.steps[-1]) for curve in every) for seed, every in of_seed.items()}
    # A handful of validation rows is soon learnt: the time it takes to learn them alone would be none for the others.
    drawing = {seed: [c for c in every if c.draws] for seed, every in of_seed.items()}
    seconds = {seed: min(float(c.seconds[-1]) for c in drawing[seed] or every) for seed, every in of_seed.items()}
    candidates = {seed: min((int(c.candidates[-1]) for c in every), default=0) for seed, every in drawing.items()}
    own = {method: [by[method, seed] for seed in seeds if (method, seed) in by] for method in methods}
    read = {
        method: Readings(
            final={c.seed: _read(c, c.steps, steps[c.seed], metric) for c in every},
            equal_seconds={c.seed: _read(c, c.seconds, seconds[c.seed], metric) for c in every},
            equal_candidates={c.seed: _read(c, c.candidates, candidates[c.seed], metric) for c in every if c.draws},
        )
        for method, every in own.items()
    }
    diverged = {method: sum(_diverged(curve, metric) for curve in every) for method, every in own.items()}
    against = {
        (name, reference): _differences({method: getattr(one, name) for method, one in read.items()}, reference)
        for name in ("final", "equal_seconds")
        for reference in (RANDOM, REGULAR)
    }
    times = {method: _to_target(by, method, target, seeds, metric) for method in methods}
    return [
        Outcome(
            setting=curves[0].setting,
            method=method,
            final=_interval(read[method].final),
            equal_seconds=_interval(read[method].equal_seconds),
            equal_candidates=_interval(read[method].equal_candidates),
            against_random=against["final", RANDOM].get(method),
            against_regular=against["final", REGULAR].get(method),
            against_random_in_time=against["equal_seconds", RANDOM].get(method),
            against_regular_in_time=against["equal_seconds", REGULAR].get(method),
            steps_to_target=_some(times[method].steps),
            seconds_to_target=_some(times[method].seconds),
            steps_share=_some(times[method].steps_share),
            seconds_share=_some(times[method].seconds_share),
            reached=len(times[method].steps),
            aimed=len(times[method].aimed),
            n=len(own[method]) - diverged[method],
            diverged=diverged[method],
            scores=_scores(own[method], metric),
            metric=metric,
            target=target,
            by_seed=read[method],
        )
        for method in methods
    ]


def _interval(values: dict[int, float]) -> Interval:
    return interval(list(values.values()))


def _diverged(curve: Curve, metric: str) -> bool:
    return not math.isfinite(curve.metrics[metric][-1])


def _read(curve: Curve, places: np.ndarray, place: float, metric: str) -> float:
    """A loss at a place between the first and the last, on straight lines; NaN next to a value that is missing.

    A run that diverged has none anywhere: it may have done so after the place that shorter runs are compared at.
    """
    return math.nan if _diverged(curve, metric) else float(np.interp(place, places, curve.metrics[metric]))


def _differences(values: dict[str, dict[int, float]], reference: str) -> dict[str, Difference]:
    """The difference of every other method to a reference, with p-values adjusted over all of them."""
    if reference not in values:
        return {}
    base, found = values[reference], {}
    for method, own in values.items():
        if method != reference:
            seeds = [seed for seed in own if seed in base]
            found[method] = paired_difference([own[seed] for seed in seeds], [base[seed] for seed in seeds])
    adjusted = holm([difference.p for difference in found.values()])
    return {name: one._replace(p=p) for (name, one), p in zip(found.items(), adjusted, strict=True)}


def _to_target(by: dict[tuple[str, int], Curve], method: str, target: str, seeds: Sequence[int], metric: str) -> _Times:
    """When a method's loss was first as low as the target method's last one, of the same seed.

    A seed in which that is no lower than the target method's first one is left out: there every method is at once.
    """
    found = _Times([], [], [], [], [])
    for seed in seeds:
        own, aim = by.get((method, seed)), by.get((target, seed))
        if own is None or aim is None:
            continue
        first, last = (float(aim.metrics[metric][place]) for place in (0, -1))
        if not (math.isfinite(last) and last < first):
            continue
        found.aimed.append(seed)
        place = first_at_or_below(own.metrics[metric], last)
        if place is None:
            continue
        places = np.arange(len(own.steps))
        steps, seconds = (float(np.interp(place, places, values)) for values in (own.steps, own.seconds))
        found.steps.append(steps)
        found.seconds.append(seconds)
        found.steps_share.append(steps / float(aim.steps[-1]) if aim.steps[-1] else math.nan)
        found.seconds_share.append(seconds / float(aim.seconds[-1]) if aim.seconds[-1] else math.nan)
    return found


def _some(values: list[float]) -> Interval | None:
    return interval(values) if values else None


def first_at_or_below(values: np.ndarray, level: float) -> float | None:
    """Where a curve first is as low as a level, as a number of evaluations from 0, fractions between them; or None."""
    below = np.flatnonzero(values <= level)
    if not len(below):
        return None
    after = int(below[0])
    if after == 0 or not math.isfinite(values[after - 1]):
        return float(after)
    before = float(values[after - 1])
    return after - 1 + (before - level) / (before - float(values[after]))


def _scores(curves: Sequence[Curve], metric: str) -> dict[str, Interval]:
    """Whatever else was measured at the end; perplexities are left to the losses they come from."""
    names = dict.fromkeys(name for curve in curves for name in curve.metrics)
    kept = [name for name in names if name != metric and not name.endswith("perplexity")]
    return {
        name: interval([float(curve.metrics[name][-1]) for curve in curves if name in curve.metrics]) for name in kept
    }
