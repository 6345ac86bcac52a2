"""From scores to picks, under jit: the best k, greedily with an overlap, within limits, or at random. Shared by all."""

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


def greedy(scores: Array, overlap: Array | None, k: int, allowed: Array) -> Selection:
    """Pick k times the candidate with the highest score less its overlap with what is already picked.

    After picking p, every score falls by `overlap[p]` (GREATS, Algorithm 1). Ties go to the lower index.

    Args:
        scores: f32[n].
        overlap: f32[n, n], what having picked p takes from the score of each candidate; None for nothing, which makes
            it `top_k`.
        k: number of slots.
        allowed: bool[n].

    Returns:
        A selection. Cost: k passes over n numbers.
    """
    if overlap is None:
        return top_k(scores, k, allowed)
    return greedy_within(scores, overlap, k, allowed, jnp.zeros(scores.shape, jnp.int32), k)


def greedy_within(
    scores: Array, overlap: Array | None, k: int, allowed: Array, groups: Array, limits: Array | int
) -> Selection:
    """`greedy`, with no more than a limit from each group.

    Args:
        scores: f32[n].
        overlap: f32[n, n] or None, as for `greedy`.
        k: number of slots.
        allowed: bool[n].
        groups: i32[n], the group of each candidate.
        limits: i32[n], how many may be picked of the group that each candidate belongs to; or one limit for all.

    Returns:
        A selection. Cost: k passes over n numbers.
    """

    def pick(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        left, current, taken = carry
        open_ = left & (taken < limits)
        best = jnp.argmax(jnp.where(open_, current, -jnp.inf))
        found = open_[best]
        if overlap is not None:
            # Only candidates still in play may be touched: the row of a forbidden one can hold anything.
            current = jnp.where(left & found, current - overlap[best], current)
        return (left.at[best].set(False), current, taken + (found & (groups == groups[best]))), (best, found)

    # The body of the scan looks rows up by traced numbers, which NumPy arrays from outside of jit do not understand.
    scores, overlap, groups, allowed = jax.tree.map(jnp.asarray, (scores, overlap, groups, allowed))
    start = (allowed, scores, jnp.zeros(scores.shape, jnp.int32))
    _, (order, found) = lax.scan(pick, start, length=k)
    return _filled(order, found, scores)._replace(overlap=overlap)


def draw(scores: Array, k: int, allowed: Array, key: Array) -> Selection:
    """Draw k allowed candidates one after another without replacement, each with probability `~ exp(score)`.

    Adding Gumbel noise to the scores and taking the best k is that draw, exactly (Kool et al. 2019).

    Args:
        scores: f32[n], log-weights.
        k: number of slots.
        allowed: bool[n].
        key: PRNG key.
    """
    noise = jax.random.gumbel(key, scores.shape)
    return top_k(scores + noise, k, allowed)._replace(scores=scores)


def standardised(values: Array, allowed: Array) -> tuple[Array, Array]:
    """Values with mean 0 and standard deviation 1 over the allowed candidates, and the deviation they had.

    Values that do not differ come out as 0, with deviation 1.
    """
    count = jnp.maximum(allowed.sum(), 1)
    lowest = jnp.where(allowed, values, jnp.inf).min()
    spread = jnp.where(allowed, values, -jnp.inf).max() - lowest
    differ = allowed.any() & (spread > 0)
    # From the lowest, in units of the spread: equal values differ by exactly 0 (a mean is rounded), and the squares of
    # gradients' inner products, too small for float32 as they are, become numbers around 1.
    safe = jnp.where(differ, spread, 1.0)
    shares = jnp.where(allowed & differ, (values - lowest) / safe, 0.0)
    centred = jnp.where(allowed, shares - shares.sum() / count, 0.0)
    within = jnp.where(differ, jnp.sqrt((centred**2).sum() / count), 1.0)
    return jnp.where(allowed, centred / within, values), safe * within


def _filled(order: Array, found: Array, scores: Array) -> Selection:
    indices = jnp.where(found, order, 0).astype(jnp.int32)
    return Selection(indices, found.astype(jnp.float32), scores)
