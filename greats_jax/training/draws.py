"""Which validation examples a step sees, and batches made ahead of the device; both pure in (seed, step)."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from greats_jax.data import Example

_Item = TypeVar("_Item")

_VALIDATION = 0x76616C
"""Keeps the validation draw's random bits apart from those of every other use of the run's seed."""


def validation_rows(examples: Sequence[Example], per_step: int, seed: int, step: int) -> list[Example]:
    """The validation examples of a step: all of them when there are at most `per_step`, else a fresh random draw.

    Args:
        examples: All validation examples of the task.
        per_step: Most rows in a step.
        seed: Seed of the run.
        step: Number of the batch, from 0.

    Returns:
        Distinct examples; the same for the same seed and step.
    """
    if len(examples) <= per_step:
        return list(examples)
    drawn = np.random.default_rng((seed, _VALIDATION, step)).choice(len(examples), per_step, replace=False)
    return [examples[index] for index in drawn]


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
