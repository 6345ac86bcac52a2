"""PartitionSel: the weighted few whose gradients add up to the validation gradient, within budgets per source."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from greats_jax.errors import ArgumentError
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, eligible, present

Array = jax.Array


@register("partition_sel", needs={"losses", "alignment", "gram", "sources"})
def partition_sel(
    signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None,
    budgets: tuple[int, ...] | None = None, sweeps: int = 50,
) -> Selection:  # fmt: skip
    """Maximise `<w, a> - eta/2 w'Kw` over weights w >= 0, at most k of them and `budgets[s]` of source s above 0.

    Orthogonal matching pursuit: pick the candidate of the largest gain `a - eta K w`, solve for the weights of the
    picks, go on while something gains. a is the alignment f32[n], K the Gram matrix f32[n, n]; out come i32[k] and
    weights f32[k]. The maximiser is proportional to `1 / eta` and the step takes weights as relative, so eta is 1 here
    and no learning rate is needed. The weights of given picks are a non-negative quadratic programme, which the paper
    solves by projected gradient; taking one coordinate after another, each exactly, needs no step size.

    `budgets` are the most picks of each source, by its number, None for no limits; a source beyond the list has none.
    `sweeps` are the passes over the picks' weights after each pick.

    Cost: as `greats`, and `k^2 sweeps` passes over n numbers. Source: PartitionSel (arXiv 2606.07954).
    """
    target, gram = present(signals, "alignment"), present(signals, "gram")
    allowed = eligible(signals, target, gram)
    both = allowed[:, None] & allowed
    target, gram = jnp.where(allowed, target, 0.0), jnp.where(both, gram, 0.0)
    diagonal = jnp.diagonal(gram)
    # A gradient of zero adds nothing at any weight.
    allowed &= diagonal > 0
    safe = jnp.where(diagonal > 0, diagonal, 1.0)
    if budgets is None:
        sources, room = jnp.zeros(target.shape, jnp.int32), jnp.full(target.shape, k)
    else:
        if not isinstance(budgets, (tuple, list)) or not all(isinstance(b, int) and b >= 0 for b in budgets):
            raise ArgumentError(
                f"partition_sel(budgets={budgets!r}): give one number of picks per source, as in (4, 2)"
            )
        sources = jnp.asarray(present(signals, "sources"))
        room = jnp.asarray((*budgets, 0))[jnp.clip(sources, 0, len(budgets))]

    def solve(order: Array, found: Array, weights: Array) -> Array:
        def coordinate(slot: Array, weights: Array) -> Array:
            i = order[slot % k]
            gain = target[i] - jnp.dot(gram[i], weights, precision=lax.Precision.HIGHEST)
            better = jnp.maximum(weights[i] + gain / safe[i], 0.0)
            return weights.at[i].set(jnp.where(found[slot % k], better, weights[i]))

        return lax.fori_loop(0, k * sweeps, coordinate, weights)

    def pick(slot: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        left, taken, order, found, weights = carry
        gain = target - jnp.dot(gram, weights, precision=lax.Precision.HIGHEST)
        # Relative to the gradient's length, as in matching pursuit: what is left of the objective after adding i alone.
        value = jnp.where(left & (taken < room) & (gain > 0), gain / jnp.sqrt(safe), -jnp.inf)
        best = jnp.argmax(value)
        hit = value[best] > -jnp.inf
        order, found = order.at[slot].set(jnp.where(hit, best, 0).astype(jnp.int32)), found.at[slot].set(hit)
        taken = taken + (hit & (sources == sources[best]))
        return left.at[best].set(left[best] & ~hit), taken, order, found, solve(order, found, weights)

    start = (
        allowed, jnp.zeros(target.shape, jnp.int32), jnp.zeros(k, jnp.int32), jnp.zeros(k, bool),
        jnp.zeros(target.shape, jnp.float32),
    )  # fmt: skip
    _, _, order, found, weights = lax.fori_loop(0, k, pick, start)
    kept = jnp.where(found, weights[order], 0.0)
    return Selection(jnp.where(kept > 0, order, 0), kept, present(signals, "alignment"))
