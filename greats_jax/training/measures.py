"""From gradients to sums that add up over parameters, and from sums to signals: the same for one pass and for two."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from greats_jax.ghost import PerExampleGrads
from greats_jax.selection import Signals
from greats_jax.training.scoring import Projection

Array = jax.Array
Sums = dict[str, Array]
_PRODUCTS = frozenset({"gram", "squared_norms"})


def own_sums(
    grads: PerExampleGrads,
    needs: frozenset[str],
    projection: Projection | None,
    key: Array,
    layer: Array | None = None,
    direction: object = None,
) -> Sums:
    """What the candidates' own gradients give, alignment included when there is a direction.

    Returns:
        Some of gram f32[n, n], squared_norms f32[n], alignment f32[n] and features f32[n, rank].
    """
    sums: Sums = {}
    exact = needs if projection is None else needs - _PRODUCTS
    if projection is not None and needs & _PRODUCTS:
        sums["features"] = grads.project(projection.rank, key, layer)
    if "gram" in exact and direction is not None:
        sums["gram"], sums["alignment"] = grads.gram_and_dot(direction)
    elif "gram" in exact:
        sums["gram"] = grads.gram()
    elif direction is not None:
        sums["alignment"] = grads.dot(direction)
    if "squared_norms" in exact and "gram" not in exact:
        sums["squared_norms"] = grads.squared_norms()
    return sums


def signals_from(sums: Sums, needs: frozenset[str], losses: Array, valid: Array) -> Signals:
    """Signals from sums over all parameters."""
    gram, norms = sums.get("gram"), sums.get("squared_norms")
    if "features" in sums:
        features = sums["features"]
        gram = features @ features.T
    if norms is None and gram is not None:
        norms = jnp.diagonal(gram)
    return Signals(
        losses=losses,
        alignment=sums.get("alignment"),
        gram=gram if "gram" in needs else None,
        squared_norms=norms if "squared_norms" in needs else None,
        valid=valid,
    )


def weigh(table: Array, weights: Array) -> Array:
    """`w_j table[j]`; a row of weight 0 is exactly 0, also when it is not finite."""
    spread = weights.reshape(-1, *[1] * (table.ndim - 1))
    return jnp.where(spread == 0, 0, spread * table)


def weighted_rows(table: Array, weights: Array) -> Array:
    """`sum_j w_j table[j]`; a row of weight 0 contributes exactly 0, also when it is not finite."""
    return weigh(table, weights).sum(0)
