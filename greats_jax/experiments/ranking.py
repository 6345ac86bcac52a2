"""Which of several methods did best, where they have not all run with the same seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from greats_jax.experiments.outcomes import Outcome


class Best(NamedTuple):
    """The method with the lowest mean loss.

    Attributes:
        outcome: What it came to.
        seeds: The seeds that the means are over, which all methods have; none where they share none.
    """

    outcome: Outcome
    seeds: frozenset[int]


def best_of(found: Sequence[Outcome], loss: str = "final") -> Best | None:
    """The best of some methods, the first of equals; None where none has a loss in every seed it ran with.

    Seeds differ by more than methods do, so that means are compared over the seeds that all methods have; where there
    is no such seed, each method's own have to do. A method that diverged with any seed is never the best.

    Args:
        found: Of one setting.
        loss: One of the names of `Readings`.
    """
    values = [(one, _finite(getattr(one.by_seed, loss))) for one in found if not one.diverged]
    values = [(one, own) for one, own in values if own]
    if not values:
        return None
    shared = frozenset.intersection(*(frozenset(own) for _, own in values))
    best, _ = min(values, key=lambda pair: _mean([pair[1][seed] for seed in shared or pair[1]]))
    return Best(best, shared)


def _finite(losses: dict[int, float]) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if math.isfinite(loss)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
