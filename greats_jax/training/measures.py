"""From gradients to sums that add up over parameters, and from sums to signals: the same for one pass and for two."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.ghost import PerExampleGrads
from greats_jax.selection import Signals
from greats_jax.training.scoring import STEERED, Projection, ScoringTask

Array = jax.Array
Sums = dict[str, Any]
_PRODUCTS = frozenset({"gram", "squared_norms"})


def own_sums(
    grads: PerExampleGrads,
    needs: frozenset[str],
    projection: Projection | None,
    key: Array,
    layer: Array | None = None,
    groups: int = 1,
    direction: object = None,
    preconditioned: object = None,
) -> Sums:
    """What the candidates' own gradients give, with the alignments where there are directions.

    Returns:
        Some of gram f32[n, n] (f32[groups, b, b] if there are more groups than one), squared_norms f32[n], features
        f32[n, rank], alignment and preconditioned_alignment f32[n].
    """
    sums: Sums = {}
    exact = needs if projection is None else needs - _PRODUCTS
    if projection is not None and needs & _PRODUCTS:
        sums["features"] = grads.project(projection.rank, key, layer)
    if "gram" in exact and direction is not None and groups == 1:
        sums["gram"], sums["alignment"] = grads.gram_and_dot(direction)
    else:
        if "gram" in exact:
            sums["gram"] = grads.gram() if groups == 1 else grads.gram_blocks(groups)
        if direction is not None:
            sums["alignment"] = grads.dot(direction)
    if preconditioned is not None:
        sums["preconditioned_alignment"] = grads.dot(preconditioned)
    if "squared_norms" in exact and "gram" not in exact:
        sums["squared_norms"] = grads.squared_norms()
    return sums


def signals_from(task: ScoringTask, sums: Sums, losses: Array, valid: Array) -> Signals:
    """Signals from sums over all parameters; on a mesh, on every device."""
    needs = task.needs
    gram, norms = sums.get("gram"), sums.get("squared_norms")
    if "features" in sums:
        features = sums["features"].reshape(task.groups, -1, sums["features"].shape[-1])
        gram = features @ features.mT
        gram = gram[0] if task.groups == 1 else gram
    if norms is None and gram is not None:
        norms = _own(gram)
    signals = Signals(
        losses=losses,
        alignment=sums.get("alignment"),
        preconditioned_alignment=sums.get("preconditioned_alignment"),
        per_leaf_alignment=sums.get("per_leaf_alignment"),
        gram=gram if "gram" in needs else None,
        squared_norms=norms if "squared_norms" in needs else None,
        valid=valid,
    )
    return signals if task.spread is None else task.spread.everywhere(signals)


def _own(gram: Array) -> Array:
    """f32[n]: the products of each example with itself, of a Gram matrix or of its blocks."""
    return jnp.diagonal(gram, axis1=-2, axis2=-1).ravel()


def finite_rows(signals: Signals, n: int) -> Array:
    """bool[n]: candidates of which all that was computed from losses and gradients is finite."""
    gram = None if signals.gram is None else _own(signals.gram)
    rows = (signals.losses, signals.alignment, signals.preconditioned_alignment, signals.squared_norms, gram)
    finite = jnp.ones(n, bool)
    for value in (*rows, *jax.tree.leaves(signals.per_leaf_alignment)):
        if value is not None:
            finite &= jnp.isfinite(value).reshape(-1, n).all(0)
    return finite


def any_aligned(sums: Sums) -> Array:
    """bool[]: whether any candidate has a finite alignment; none has one with a direction that was never set."""
    parts = [jax.tree.leaves(sums.get(name)) for name in sorted(STEERED)]
    return jnp.stack([jnp.isfinite(x).any() for part in parts for x in part]).any()
