"""Which validation examples a step sees, and batches made ahead of the device; both pure in (seed, step)."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from greats_jax.data import CandidateSampler, Example

_Item = TypeVar("_Item")

_VALIDATION = 0x76616C
"""Keeps the validation draw's random bits apart from those of every other use of the run's seed."""


def validation_indices(count: int, per_step: int | None, seed: int, step: int) -> np.ndarray:
    """Which of `count` validation examples a step sees: all when there are at most `per_step`, else a fresh draw.

    Args:
        count: Validation examples of the task.
        per_step: Most rows in a step; None for no limit.
        seed: Seed of the run.
        step: Number of the batch, from 0.

    Returns:
        Distinct indices, i64; the same for the same seed and step.
    """
    if per_step is None or count <= per_step:
        return np.arange(count)
    return _draw(count, per_step, seed, step)


def validation_rows(examples: Sequence[Example], per_step: int | None, seed: int, step: int) -> list[Example]:
    """The validation examples of a step: those of `validation_indices`."""
    return [examples[index] for index in validation_indices(len(examples), per_step, seed, step)]


def recent_indices(sampler: CandidateSampler, per_step: int | None, window: int, seed: int, step: int) -> np.ndarray:
    """A moving buffer in the place of a validation set: examples that were candidates a short while ago.

    Nothing is stored: what the buffer holds follows from the draws of the steps before, so a resumed run sees the same.

    Args:
        sampler: Draws the candidates.
        per_step: Most rows in a step; None for the whole buffer.
        window: Length of the buffer, in batches.
        seed: Seed of the run.
        step: Number of the batch, from 0.

    Returns:
        Distinct indices into the pool, i64, none of them a candidate of this step. Where the steps before hold no
        other example (at the start), random ones of the pool stand in.
    """
    now = sampler.indices(step)
    before = [sampler.indices(number) for number in range(max(0, step - window), step)]
    buffer = np.setdiff1d(np.concatenate(before), now) if before else np.empty(0, np.int64)
    if not len(buffer):
        buffer = np.setdiff1d(np.arange(len(sampler.pool)), now)
    if per_step is None:
        per_step = sampler.batch_size * window
    return buffer if len(buffer) <= per_step else buffer[_draw(len(buffer), per_step, seed, step)]


def _draw(count: int, size: int, seed: int, step: int) -> np.ndarray:
    return np.random.default_rng((seed, _VALIDATION, step)).choice(count, size, replace=False)


def prefetch(make: Callable[[int], _Item], count: int, ahead: int = 2) -> Generator[_Item, None, None]:
    """make(0), ..., make(count - 1), prepared in a thread up to `ahead` items early.

    `make` must be pure in its argument, so that how far it got does not matter when a run stops early. An exception
    in it is raised where its item would have come.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="greats-data") as pool:
        waiting: deque[Future[_Item]] = deque()
        try:
            for number in range(min(ahead, count)):
                waiting.append(pool.submit(make, number))
            for number in range(count):
                if number + ahead < count:
                    waiting.append(pool.submit(make, number + ahead))
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
