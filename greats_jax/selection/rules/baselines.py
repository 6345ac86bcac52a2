"""Rules that look at no validation example: controls, and the largest loss or gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.selection.picking import top_k
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, candidate_count, eligible, present

Array = jax.Array


@register("regular", needs=())
def regular(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The first k candidates in batch order; with k = n the whole batch, which is ordinary training.

    Cost: none. Source: the baseline of GREATS (Wang et al., NeurIPS 2024).
    """
    order = -jnp.arange(candidate_count(signals), dtype=jnp.float32)
    return top_k(order, k, eligible(signals, order))._replace(scores=None)


@register("random_k", needs=())
def random_k(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """Draw k candidates uniformly without replacement, by `key`.

    Cost: none. The control for every rule that keeps k of n.
    """
    if key is None:
        raise ArgumentError("random_k draws at random: pass key=jax.random.key(...)")
    draw = jax.random.uniform(key, (candidate_count(signals),))
    return top_k(draw, k, eligible(signals, draw))._replace(scores=None)


@register("max_loss", needs={"losses"})
def max_loss(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest loss. f32[n] -> i32[k].

    Cost: one forward pass of the candidates. Source: baseline of GREATS.
    """
    losses = present(signals, "losses")
    return top_k(losses, k, eligible(signals, losses))


@register("grad_norm", needs={"losses", "squared_norms"})
def grad_norm(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest gradient norm, score `|g_i|`. f32[n] -> i32[k].

    Cost: forward and backward of the candidates and one norm each. Source: baseline of GREATS.
    """
    squares = present(signals, "squared_norms")
    norms = jnp.sqrt(jnp.maximum(squares, 0.0))  # rounding can leave a square of 0 below it
    return top_k(norms, k, eligible(signals, squares))
