"""From scores to picks, under jit: top-k and greedy with a redundancy penalty. Shared by all rules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from greats_jax.selection.signals import Selection

Array = jax.Array


def top_k(scores: Array, k: int, allowed: Array) -> Selection:
    """The k allowed candidates with the highest scores, best first; ties go to the lower index.

    Args:
        scores: f32[n].
        k: number of slots.
        allowed: bool[n].

    Returns:
        A selection; when fewer than k are allowed the rest of the slots have index 0 and weight 0.
        Cost: one sort of n numbers.
    """
    # Forbidden last, then by descending score; a stable sort leaves ties in index order.
    order = jnp.lexsort((-jnp.where(allowed, scores, 0.0), ~allowed))
    missing = max(0, k - order.size)
    return _filled(jnp.pad(order[:k], (0, missing)), jnp.pad(allowed[order[:k]], (0, missing)), scores)


def greedy(scores: Array, overlap: Array, k: int, allowed: Array) -> Selection:
    """Pick k times the candidate with the highest score less its overlap with what is already picked.

    After picking p, every score falls by `overlap[p]` (GREATS, Algorithm 1). Ties go to the lower index.

    Args:
        scores: f32[n].
        overlap: f32[n, n], what having picked p takes from the score of each candidate.
        k: number of slots.
        allowed: bool[n].

    Returns:
        A selection. Cost: k passes over n numbers.
    """

    def pick(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        left, current = carry
        best = jnp.argmax(jnp.where(left, current, -jnp.inf))
        found = left[best]
        # Only candidates still in play may be touched: the row of a forbidden one can hold anything.
        current = jnp.where(left & found, current - overlap[best], current)
        return (left.at[best].set(False), current), (best, found)

    _, (order, found) = lax.scan(pick, (allowed, scores), length=k)
    return _filled(order, found, scores)


def _filled(order: Array, found: Array, scores: Array) -> Selection:
    indices = jnp.where(found, order, 0).astype(jnp.int32)
    return Selection(indices, found.astype(jnp.float32), scores)
