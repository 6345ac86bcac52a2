"""PartitionSel: the weighted few whose gradients add up to the validation gradient, within budgets per source."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from greats_jax.errors import ArgumentError
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, candidate_count, eligible, present

Array = jax.Array


# The least gain that counts, and what is added to the diagonal: float32 rounds cosines to 1e-7.
_GAIN, _RIDGE = 1e-5, 1e-7


class _Pursuit(NamedTuple):
    """Where the pursuit stands; slots hold the picks in their order.

    Attributes:
        order: i32[k], the candidate of each slot.
        filled: i32[], slots with a pick.
        active: bool[k], picks whose weight is above 0.
        barred: bool[k], picks that gained by rounding only: their weight was to fall at once.
        weights: f32[k], of unit gradients.
        left: bool[n], candidates not picked yet.
        taken: i32[n], picks of the source of each candidate.
        rounds: i32[], systems solved.
        done: bool[].
    """

    order: Array
    filled: Array
    active: Array
    barred: Array
    weights: Array
    left: Array
    taken: Array
    rounds: Array
    done: Array


@register("partition_sel", needs={"losses", "alignment", "gram", "sources"}, by_scores=False)
def partition_sel(
    signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None,
    budgets: tuple[int, ...] | None = None,
) -> Selection:  # fmt: skip
    """Maximise `<w, a> - eta/2 w'Kw` over weights w >= 0, at most k of them and `budgets[s]` of source s above 0.

    Orthogonal matching pursuit: pick the candidate of the largest gain `(a - eta K w)_i / |g_i|`, solve for the weights
    of the picks, go on while something gains. a is the alignment f32[n], K the Gram matrix f32[n, n]; out come i32[k]
    and weights f32[k]. The maximiser is proportional to `1 / eta` and the step takes weights as relative, so eta is 1
    here and no learning rate is needed. The weights of given picks are a non-negative quadratic programme, which the
    paper solves by projected gradient; the active-set method of Lawson and Hanson (1974) is exact, needs no step size,
    and starts from the weights before the last pick.

    `budgets` are the most picks of each source, by its number, None for no limits; a source beyond the list has none.

    Cost: as `greats`, and for each pick one linear system [k, k] and one product [n, k]; one more for each weight that
    falls to 0. Source: PartitionSel (arXiv 2606.07954).
    """
    alignment, gram = present(signals, "alignment"), present(signals, "gram")
    allowed = eligible(signals, alignment, gram)
    diagonal = jnp.where(allowed, jnp.diagonal(gram), 0.0)
    # A gradient of zero adds nothing at any weight.
    allowed &= diagonal > 0
    lengths = jnp.sqrt(jnp.where(allowed, diagonal, 1.0))
    # In units of the gradients' lengths, so that rounding is the same for all.
    target = jnp.where(allowed, alignment / lengths, 0.0)
    cosines = jnp.where(allowed[:, None] & allowed, gram / lengths / lengths[:, None], 0.0)
    sources, room = _budgets(signals, k, budgets)
    least = _GAIN * jnp.max(target, initial=0.0)

    def within(now: _Pursuit, picks: Array) -> tuple[Array, Array]:
        """Matrix and right-hand side whose solution are the best weights of some slots, 0 in the others."""
        both = picks[:, None] & picks
        block = jnp.where(both, cosines[now.order[:, None], now.order], 0.0)
        return block + jnp.diag(jnp.where(picks, _RIDGE, 1.0)), jnp.where(picks, target[now.order], 0.0)

    def settle(now: _Pursuit) -> _Pursuit:
        solved = jnp.linalg.solve(*within(now, now.active))
        below = now.active & (solved <= 0)
        # Towards the solution until the first weight reaches 0; that one leaves, and the rest is solved again.
        fall = now.weights - solved
        share = jnp.where(below, now.weights / jnp.where(below & (fall > 0), fall, 1.0), jnp.inf)
        step = jnp.minimum(share.min(), 1.0)
        weights = jnp.where(now.active, now.weights - step * fall, 0.0)
        active = now.active & ~(below & (share <= step))
        weights = jnp.where(active, jnp.maximum(weights, 0.0), 0.0)
        barred = now.barred | (below & (now.weights <= 0))
        now = now._replace(weights=weights, active=active, barred=barred, rounds=now.rounds + 1)
        return lax.cond(below.any(), lambda x: x, extend, now)

    def extend(now: _Pursuit) -> _Pursuit:
        """Let a pick back in that gains again; else pick the candidate of the largest gain."""
        gain = target - jnp.matmul(cosines[:, now.order], now.weights, precision=lax.Precision.HIGHEST)
        idle = (jnp.arange(k) < now.filled) & ~now.active & ~now.barred & (gain[now.order] > least)
        slot = jnp.argmax(jnp.where(idle, gain[now.order], -jnp.inf))
        open_ = now.left & (now.taken < room) & (gain > least) & (now.filled < k) & ~idle.any()
        best = jnp.argmax(jnp.where(open_, gain, -jnp.inf))
        hit = open_[best]
        slot = jnp.where(hit, now.filled, slot)
        moved = hit | idle.any()
        return now._replace(
            order=now.order.at[slot].set(jnp.where(hit, best, now.order[slot]).astype(jnp.int32)),
            filled=now.filled + hit,
            active=now.active.at[slot].set(now.active[slot] | moved),
            left=now.left.at[best].set(now.left[best] & ~hit),
            taken=now.taken + (hit & (sources == sources[best])),
            done=~moved,
        )

    n = target.shape[0]
    start = _Pursuit(
        jnp.zeros(k, jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(k, bool), jnp.zeros(k, bool),
        jnp.zeros(k, jnp.float32), allowed, jnp.zeros(n, jnp.int32), jnp.zeros((), jnp.int32), jnp.asarray(False),
    )  # fmt: skip
    # The objective rises with every round, so there is an end; the bound is for rounding that goes in a circle.
    found = lax.while_loop(lambda now: ~now.done & (now.rounds < 4 * k + 4), settle, extend(start))
    kept = jnp.where(found.weights > 0, found.weights / lengths[found.order], 0.0)
    return Selection(jnp.where(kept > 0, found.order, 0), kept, alignment)


def _budgets(signals: Signals, k: int, budgets: Any) -> tuple[Array, Array]:
    """The source of each candidate, and how many may be picked of it: i32[n] both."""
    if budgets is None:
        n = candidate_count(signals)
        return jnp.zeros(n, jnp.int32), jnp.full(n, k)
    if not isinstance(budgets, (tuple, list)) or not all(isinstance(b, int) and b >= 0 for b in budgets):
        raise ArgumentError(f"partition_sel(budgets={budgets!r}): give one number of picks per source, as in (4, 2)")
    sources = jnp.asarray(present(signals, "sources"))
    return sources, jnp.asarray((*budgets, 0))[jnp.clip(sources, 0, len(budgets))]
