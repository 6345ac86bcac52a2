"""Candidates of every step as a pure function of seed and step: nothing to save, and resumed runs see the same data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from greats_jax.data.config import MAX_BUCKETS
from greats_jax.data.examples import LanguageBatch, collate
from greats_jax.data.pool import Pool
from greats_jax.data.randomness import permutation
from greats_jax.errors import DataError

_ROUND_TO = 8
"""Bucket lengths are multiples of this: matrix units like it, and runs on similar pools then share compilations."""

_GROUP = 50
"""Batches among which examples of similar length are put together, when they are."""

_EPOCHS_KEPT = 3
"""Epochs whose order is kept in memory: the current one, one ahead, one behind."""

_ORDER, _MIX, _BATCHES = range(3)
"""What a permutation is for, so that no two share their random bits."""


class Candidates(NamedTuple):
    """The candidate batch of one step.

    Attributes:
        batch: Tokens and masks, [n, t].
        ids: Names of the examples.
        sources: i32[n]; indices into the pool's `sources`.
        indices: i64[n]; indices into the pool.
        padding_share: Part of the batch's positions that are padding, 0 to 1.
    """

    batch: LanguageBatch
    ids: tuple[str, ...]
    sources: np.ndarray
    indices: np.ndarray
    padding_share: float


class CandidateSampler:
    """Draws the candidates of any step.

    An epoch is as many draws as the pool has examples. Without weights it sees each example once, in an order of its
    own, except for the last few that fill no batch. With weights, a source gets its share of the epoch and goes through
    its examples in random order, again and again across epochs: small sources repeat, large ones are seen in part.

    Args:
        pool: The pool.
        batch_size: Candidates per step.
        seed: Seed of the order.
        buckets: Number of lengths that batches are padded to, 1 to 4.
        group_by_length: Whether candidates of similar length are drawn together.
        min_length: Shortest length to pad to, in tokens: for batches that share their length with validation rows.

    Raises:
        DataError: The pool has fewer examples than a batch, or an argument is out of range.
    """

    def __init__(
        self,
        pool: Pool,
        batch_size: int,
        seed: int = 0,
        *,
        buckets: int = MAX_BUCKETS,
        group_by_length: bool = False,
        min_length: int = 0,
    ):
        if batch_size < 1:
            raise DataError(f"the candidate batch has {batch_size} examples, but needs at least 1")
        if seed < 0:
            raise DataError(f"the seed of the candidates is {seed}, but must not be negative")
        if not 1 <= buckets <= MAX_BUCKETS:
            raise DataError(f"data.buckets is {buckets}, but must be 1 to {MAX_BUCKETS}: each is one compilation")
        if len(pool) < batch_size:
            raise DataError(
                f"the pool has {len(pool)} examples, fewer than the {batch_size} candidates of a step: add data, or "
                "make the batch smaller"
            )
        self.pool = pool
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.steps_per_epoch = len(pool) // batch_size
        self._lengths = pool.lengths
        self._members, self._draws = _shares(pool)
        self._epochs: dict[int, np.ndarray] = {}
        self.bucket_lengths = self._bucket_lengths(buckets, min_length)

    def __call__(self, step: int, at_least: int = 0) -> Candidates:
        """The candidates of a step, padded to the smallest bucket that holds them and `at_least` tokens."""
        indices = self.indices(step)
        longest = max(int(self._lengths[indices].max()), at_least)
        length = next(edge for edge in self.bucket_lengths if edge >= longest)
        examples = [self.pool[index] for index in indices]
        batch = collate(examples, length, self.pool.pad_id)
        return Candidates(
            batch=batch,
            ids=tuple(example.id for example in examples),
            sources=self.pool.source_indices[indices],
            indices=indices,
            padding_share=1 - float(self._lengths[indices].sum()) / batch.input_ids.size,
        )

    def indices(self, step: int) -> np.ndarray:
        """Indices into the pool of the candidates of a step, i64[batch_size]. Cost: one sort of the pool per epoch."""
        if step < 0:
            raise DataError(f"step {step} has no candidates: steps count from 0")
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[batch]

    def _epoch(self, epoch: int) -> np.ndarray:
        """Batches of an epoch, i64[steps_per_epoch, batch_size]."""
        batches = self._epochs.get(epoch)
        if batches is None:
            batches = self._draw(self.seed, epoch)
            # One assignment, not an update in place: a thread that draws ahead may be here at the same time.
            self._epochs = {**dict(list(self._epochs.items())[-_EPOCHS_KEPT + 1 :]), epoch: batches}
        return batches

    def _draw(self, seed: int, epoch: int) -> np.ndarray:
        drawn = np.concatenate(
            [
                members[_stream(len(members), epoch * draws, draws, seed, component)]
                for component, (members, draws) in enumerate(zip(self._members, self._draws, strict=True))
            ]
        )
        drawn = drawn[permutation(len(drawn), seed, _MIX, epoch)]
        size = self.batch_size
        if not self.group_by_length:
            return drawn[: self.steps_per_epoch * size].reshape(-1, size)
        chunks = [
            drawn[first : first + _GROUP * size] for first in range(0, self.steps_per_epoch * size, _GROUP * size)
        ]
        drawn = np.concatenate([chunk[np.argsort(-self._lengths[chunk], kind="stable")] for chunk in chunks])
        batches = drawn[: self.steps_per_epoch * size].reshape(-1, size)
        return batches[permutation(len(batches), seed, _BATCHES, epoch)]

    def _bucket_lengths(self, buckets: int, min_length: int) -> tuple[int, ...]:
        # A batch is as long as its longest row, so what matters is how long those are. Measured on one epoch of a fixed
        # seed, so that runs which differ only in their seed share compilations.
        longest_rows = self._lengths[self._draw(0, 0)].max(axis=1)
        return bucket_lengths(longest_rows, buckets, longest=int(self._lengths.max()), min_length=min_length)


def bucket_lengths(
    lengths: np.ndarray, buckets: int, longest: int | None = None, min_length: int = 0
) -> tuple[int, ...]:
    """Chooses the lengths to pad to.

    Args:
        lengths: Lengths that have to fit, in tokens, [m].
        buckets: Greatest number of lengths.
        longest: Length that must fit in any case; unset, the longest of `lengths`.
        min_length: Shortest length to offer.

    Returns:
        At most `buckets` ascending lengths: quantiles of `lengths` rounded up to multiples of 8, and the longest.
    """
    longest = int(max(lengths)) if longest is None else longest
    levels = np.arange(1, buckets) / buckets
    edges = [*np.quantile(lengths, levels, method="higher").tolist(), longest]
    return tuple(sorted({_round_up(max(edge, min_length, 1)) for edge in edges}))


def _round_up(length: float) -> int:
    return -(-int(length) // _ROUND_TO) * _ROUND_TO


def _shares(pool: Pool) -> tuple[list[np.ndarray], Sequence[int]]:
    """Members of each component of the mixture, and how many of them an epoch draws."""
    if pool.weights is None:
        return [np.arange(len(pool))], [len(pool)]
    members = [np.flatnonzero(pool.components == component) for component in range(len(pool.weights))]
    weights = np.array([weight if len(group) else 0.0 for weight, group in zip(pool.weights, members, strict=True)])
    exact = weights / weights.sum() * len(pool)
    draws = np.floor(exact).astype(int)
    # What rounding down leaves goes to the largest remainders, so that an epoch is exactly as long as the pool.
    draws[np.argsort(draws - exact, kind="stable")[: len(pool) - draws.sum()]] += 1
    return members, draws.tolist()


def _stream(size: int, start: int, count: int, seed: int, component: int) -> np.ndarray:
    """Part [start, start + count) of an endless stream of permutations of `size` things."""
    if count == 0:
        return np.empty(0, np.int64)
    first, last = start // size, (start + count - 1) // size
    passes = np.concatenate([permutation(size, seed, _ORDER, component, number) for number in range(first, last + 1)])
    return passes[start - first * size :][:count]
