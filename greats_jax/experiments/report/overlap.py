"""Whether two methods, given the same candidates, choose the same ones."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np

Record = Mapping[str, Any]


class Overlap(NamedTuple):
    """How alike the choices of two methods are.

    Attributes:
        first: One method.
        second: The other.
        jaccard: Of what either chose, the share that both chose; mean over batches of the same candidates.
        chance: What two random choices of the same sizes would have.
        batches: Batches compared.
    """

    first: str
    second: str
    jaccard: float
    chance: float
    batches: int


def overlaps(runs: Mapping[str, Sequence[Sequence[Record]]]) -> list[Overlap]:
    """Compare every two methods.

    Args:
        runs: For each method the records of selections.jsonl of its runs, in an order that all methods share (by seed);
            a run that is missing is empty.

    Returns:
        One entry for each pair that saw at least one batch of the same candidates.
    """
    picks = {method: [_picks(records) for records in several] for method, several in runs.items()}
    found = []
    for first, second in combinations(picks, 2):
        values, chances = [], []
        for one, other in zip(picks[first], picks[second], strict=True):
            for key in one.keys() & other.keys():
                (candidates, mine), (others, theirs) = one[key], other[key]
                if candidates != others or not mine | theirs:
                    continue
                values.append(len(mine & theirs) / len(mine | theirs))
                chances.append(chance_jaccard(len(candidates), len(mine), len(theirs)))
        if values:
            found.append(Overlap(first, second, float(np.mean(values)), float(np.mean(chances)), len(values)))
    return found


def chance_jaccard(n: int, k: int, m: int) -> float:
    """Expected share of common elements when k and m of n are drawn at random, independently (hypergeometric)."""
    if not k + m:
        return float("nan")
    ways = comb(n, m)
    both = range(max(0, k + m - n), min(k, m) + 1)
    return sum(comb(k, x) * comb(n - k, m - x) / ways * x / (k + m - x) for x in both)


def _picks(records: Sequence[Record]) -> dict[tuple[int, int], tuple[frozenset[str], frozenset[str]]]:
    """Candidates and chosen of each batch, by update and micro-batch."""
    return {
        (record["step"], record["micro_batch"]): (
            frozenset(record["candidates"]),
            frozenset(n for n, w in zip(record["chosen"], record["weights"], strict=True) if w is not None and w > 0),
        )
        for record in records
    }
