"""Random permutations that are the same with every version of NumPy and on every machine."""

import numpy as np


def permutation(size: int, *seed: int) -> np.ndarray:
    """A random order.

    NumPy keeps the raw bits of its bit generators stable across releases, but not what `Generator.permutation` makes of
    them, and a run resumed years later must see the same data. So the order is that of raw random bits.

    Args:
        size: Number of things.
        *seed: Non-negative integers that name the order; different ones give independent orders.

    Returns:
        i64[size], a permutation of 0 .. size - 1. Cost: one sort.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(size)
    return np.argsort(bits, kind="stable")
