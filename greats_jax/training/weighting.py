"""Weighted sums of rows in which a row of weight 0 counts for nothing, whatever it holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def weigh(table: Array, weights: Array) -> Array:
    """`w_j table[j]`; a row of weight 0 is exactly 0, also when it is not finite."""
    spread = weights.reshape(-1, *[1] * (table.ndim - 1))
    return jnp.where(spread == 0, 0, spread * table)


def weighted_rows(table: Array, weights: Array) -> Array:
    """`sum_j w_j table[j]`; a row of weight 0 contributes exactly 0, also when it is not finite."""
    return weigh(table, weights).sum(0)
