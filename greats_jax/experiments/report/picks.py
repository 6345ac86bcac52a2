"""What a run chose, and how that differs from what it could have chosen."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MOST_BINS = 10
"""Groups that lengths, losses and the updates of a run are cut into."""


class Candidacies(NamedTuple):
    """Every candidate of every batch of a run, as columns of equal length.

    Attributes:
        names: Ids of the examples.
        sources: Names of the sources.
        step: i64[r]; number of the update, from 1.
        batch: i64[r]; number of the batch within the run, from 0.
        example: i64[r]; index into `names`.
        source: i64[r]; index into `sources`.
        score: f64[r]; NaN where the rule gave none.
        loss: f64[r]; nats per label token; NaN where it was not computed.
        chosen: bool[r]; learned from, with a weight above 0.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    step: np.ndarray
    batch: np.ndarray
    example: np.ndarray
    source: np.ndarray
    score: np.ndarray
    loss: np.ndarray
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.step)


class Shares(NamedTuple):
    """How groups of examples share in the candidates and in what was chosen.

    Attributes:
        names: Names of the groups.
        candidates: f64[g]; share of the candidates, summing to 1.
        chosen: f64[g]; share of the chosen, summing to 1.
    """

    names: tuple[str, ...]
    candidates: np.ndarray
    chosen: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """How many times as often as by chance a group was chosen, f64[g]; NaN for a group that had no candidate."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.candidates > 0, self.chosen / self.candidates, np.nan)


def candidacies(selections: Sequence[Mapping[str, Any]]) -> Candidacies:
    """The records of selections.jsonl as columns; one pass over them."""
    names: dict[str, int] = {}
    sources: dict[str, int] = {}
    columns: dict[str, list[Any]] = defaultdict(list)
    for number, record in enumerate(selections):
        ids = record["candidates"]
        kept = zip(record["chosen"], record["weights"], strict=True)
        left = Counter(name for name, weight in kept if weight is not None and weight > 0)
        for position, name in enumerate(ids):
            columns["example"].append(names.setdefault(name, len(names)))
            # An example can be in a batch twice; as many of the two count as chosen as were.
            columns["chosen"].append(left[name] > 0)
            left[name] -= 1
            source = record["sources"][position]
            columns["source"].append(sources.setdefault(source, len(sources)))
        columns["step"] += [record["step"]] * len(ids)
        columns["batch"] += [number] * len(ids)
        columns["score"] += _numbers(record.get("scores"), len(ids))
        columns["loss"] += _numbers(record.get("losses"), len(ids))
    whole = {name: np.array(columns[name], np.int64) for name in ("step", "batch", "example", "source")}
    real = {name: np.array(columns[name], np.float64) for name in ("score", "loss")}
    return Candidacies(tuple(names), tuple(sources), **whole, **real, chosen=np.array(columns["chosen"], bool))


def chooses(found: Candidacies) -> bool:
    """Whether anything was left out: a run that learns from every candidate has made no choice."""
    return len(found) > 0 and not found.chosen.all()


def keep_share(found: Candidacies) -> float:
    """Share of the candidates that was chosen."""
    return float(found.chosen.mean()) if len(found) else float("nan")


def shares(group: np.ndarray, chosen: np.ndarray, names: Sequence[str]) -> Shares:
    """Shares by group.

    Args:
        group: i64[r]; index into `names`, or -1 for what belongs to none and is left out.
        chosen: bool[r].
        names: Names of the groups.
    """
    inside = group >= 0
    of_candidates = np.bincount(group[inside], minlength=len(names)).astype(np.float64)
    of_chosen = np.bincount(group[inside & chosen], minlength=len(names)).astype(np.float64)
    return Shares(tuple(names), of_candidates / max(1.0, of_candidates.sum()), of_chosen / max(1.0, of_chosen.sum()))


def mean_shares(several: Sequence[Shares]) -> Shares:
    """The mean over runs, each counting the same; a group that a run has not is 0 there."""
    names = tuple(dict.fromkeys(name for one in several for name in one.names))
    return Shares(
        names,
        np.mean([_at(names, one.names, one.candidates) for one in several], axis=0),
        np.mean([_at(names, one.names, one.chosen) for one in several], axis=0),
    )


def by_source(found: Candidacies) -> Shares:
    """Shares by source."""
    return shares(found.source, found.chosen, found.sources)


def rank_bins(several: Sequence[Candidacies]) -> int:
    """Groups that ranks of losses are cut into: as many as the run of the smallest batches can fill, up to ten.

    Runs without losses do not count; 0 where no run has any.
    """
    known = [np.isfinite(found.loss) for found in several]
    sizes = [np.bincount(found.batch[own]).max() for found, own in zip(several, known, strict=True) if own.any()]
    return int(min([MOST_BINS, *sizes])) if sizes else 0


def by_loss(found: Candidacies, bins: int) -> Shares | None:
    """Shares by the rank of the loss within its batch, smallest first; None where losses were not computed.

    Losses fall while a model learns, so that a decile over the whole run would mostly say when an example was seen. The
    rank is taken among those that the same choice was made from.

    Args:
        found: The candidates.
        bins: Groups of ranks; from `rank_bins` of all runs that are shown together.
    """
    known = np.isfinite(found.loss)
    if not known.any():
        return None
    order = np.lexsort((np.where(known, found.loss, np.inf), found.batch))
    batch = found.batch[order]
    first = np.r_[True, batch[1:] != batch[:-1]]
    start = np.maximum.accumulate(np.where(first, np.arange(len(batch)), 0))
    rank = np.empty(len(batch))
    rank[order] = np.arange(len(batch)) - start
    size = np.bincount(found.batch, weights=known)[found.batch]
    group = np.where(known, np.floor(rank / np.maximum(size, 1) * bins), -1).astype(np.int64)
    return shares(group, found.chosen, _names_of_ranks(bins))


def by_length(found: Candidacies, lengths: Mapping[str, int], edges: np.ndarray) -> Shares | None:
    """Shares by the tokens of an example; None where the length of none is known.

    Args:
        found: The candidates.
        lengths: Tokens by id.
        edges: i64[g + 1] from `length_edges`.
    """
    tokens = np.array([lengths.get(name, -1) for name in found.names], np.int64)
    if not (tokens >= 0).any():
        return None
    groups = np.searchsorted(edges[1:-1], tokens, side="right")
    group = np.where(tokens >= 0, groups, -1)[found.example]
    names = [
        f"{low}" if high - low <= 1 else f"{low} to {high - 1}"
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    return shares(group, found.chosen, names)


def length_edges(lengths: Sequence[int]) -> np.ndarray:
    """Edges of up to ten groups of lengths that hold about equally many examples, i64[g + 1]; the last is excluded.

    Where most examples are of one length, those below it may be so few that how often they were chosen says nothing: a
    group of less than half its part is one with the next.
    """
    inner = np.quantile(lengths, np.linspace(0, 1, MOST_BINS + 1)[:-1], method="closest_observation")
    edges = np.unique(np.r_[inner, max(lengths) + 1].astype(np.int64))
    below = np.searchsorted(np.sort(lengths), edges)
    kept = [0]
    for place in range(1, len(edges)):
        if below[place] - below[kept[-1]] >= len(lengths) / (2 * MOST_BINS):
            kept.append(place)
    return edges[[*kept[:-1], -1]] if len(kept) > 1 else edges[[0, -1]]


class Course(NamedTuple):
    """How the shares of the sources moved while a run trained.

    Attributes:
        names: Names of the sources.
        steps: f64[p]; middle of each part of the run, in updates.
        candidates: f64[p, s]; share of the part's candidates.
        chosen: f64[p, s]; share of the part's chosen.
    """

    names: tuple[str, ...]
    steps: np.ndarray
    candidates: np.ndarray
    chosen: np.ndarray


def course(found: Candidacies) -> Course:
    """Shares by source in up to ten equal parts of a run."""
    last = int(found.step.max())
    parts = min(MOST_BINS, last)
    part = (found.step - 1) * parts // last
    rows = [shares(found.source[part == p], found.chosen[part == p], found.sources) for p in range(parts)]
    middles = (np.arange(parts) + 0.5) * last / parts
    return Course(
        found.sources, middles, np.array([row.candidates for row in rows]), np.array([row.chosen for row in rows])
    )


def mean_course(several: Sequence[Course]) -> Course:
    """The mean over runs of equally many updates; of others, those that have as many parts as the first."""
    first = several[0]
    alike = [one for one in several if len(one.steps) == len(first.steps)]
    names = tuple(dict.fromkeys(name for one in alike for name in one.names))
    return Course(
        names,
        first.steps,
        np.mean([[_at(names, one.names, row) for row in one.candidates] for one in alike], axis=0),
        np.mean([[_at(names, one.names, row) for row in one.chosen] for one in alike], axis=0),
    )


def _names_of_ranks(bins: int) -> list[str]:
    return ["smallest", *(f"{number}." for number in range(2, bins)), "largest"]


def _at(names: Sequence[str], own: Sequence[str], values: np.ndarray) -> np.ndarray:
    """`values`, which belong to `own`, in the order of `names`."""
    by_name = dict(zip(own, values.tolist(), strict=True))
    return np.array([by_name.get(name, 0.0) for name in names])


def _numbers(values: Sequence[float | None] | None, count: int) -> list[float]:
    if values is None:
        return [float("nan")] * count
    return [float("nan") if value is None else float(value) for value in values]
