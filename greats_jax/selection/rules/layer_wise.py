"""Layer-wise selection: every parameter learns from its own examples."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.selection.picking import top_k
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Signals, eligible, present

Array = jax.Array
PyTree = Any


@register("layer_wise", needs={"losses", "per_leaf_alignment"})
def layer_wise(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> PyTree:
    """For each parameter (each layer of a stacked one) the k candidates with the largest `<g_i, v>` in it alone.

    A pytree like the floating parameters of selections with i32[k], or i32[layers, k] where the parameter is stacked. A
    candidate that is not finite anywhere is left out everywhere.

    Cost: as `greats_first_order`, with the validation direction formed. Source: Dr. Post-Training (arXiv 2605.07063).
    """
    parts = present(signals, "per_leaf_alignment")
    # Only whether the sum is finite matters; zeros stand in, as finite terms can overflow in a sum.
    broken = [~jnp.isfinite(x.reshape(-1, x.shape[-1])).all(0) for x in jax.tree.leaves(parts)]
    allowed = eligible(signals, jnp.where(jnp.stack(broken).any(0), jnp.nan, 0.0))

    def best(scores: Array) -> Any:
        pick = functools.partial(top_k, k=k, allowed=allowed)
        return pick(scores) if scores.ndim == 1 else jax.vmap(pick)(scores)

    return jax.tree.map(best, parts)
