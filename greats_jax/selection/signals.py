"""What a selection rule sees and what it returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError

Array = jax.Array


class Signals(NamedTuple):
    """Quantities about n candidates; a field is None unless some rule declared that it needs it.

    Attributes:
        losses: f32[n], nats (mean over an example's label tokens for language models).
        alignment: f32[n], `<g_i, mean validation gradient>`.
        gram: f32[n, n], `<g_i, g_j>`.
        squared_norms: f32[n], `<g_i, g_i>`.
        per_leaf_alignment: pytree of f32[n] (f32[layers, n] for stacked leaves).
        reference_losses: f32[n], losses under a frozen reference model.
        embeddings: f32[n, e] of the candidates.
        logit_summaries: rule-specific summaries of the candidates' logits, leading axis n.
        sources: i32[n], index of the data source each candidate came from.
        valid: bool[n]; False for a candidate that must not be picked (no labels).
        memory: what the rule returned in `Selection.memory` at the step before.
        optimizer: read-only view of the optimizer state.
    """

    losses: Array | None = None
    alignment: Array | None = None
    gram: Array | None = None
    squared_norms: Array | None = None
    per_leaf_alignment: Any = None
    reference_losses: Array | None = None
    embeddings: Array | None = None
    logit_summaries: Any = None
    sources: Array | None = None
    valid: Array | None = None
    memory: Any = None
    optimizer: Any = None


class Selection(NamedTuple):
    """k picks.

    Attributes:
        indices: i32[k], in the order of picking; an empty slot has index 0.
        weights: f32[k], relative; an empty slot has weight 0.
        scores: f32[n], what candidates were ranked by before the first pick, for reports; None if the rule has none.
        memory: what the rule wants to see at the next step.
    """

    indices: Array
    weights: Array
    scores: Array | None = None
    memory: Any = None


def candidate_count(signals: Signals) -> int:
    """Number of candidates n, from whichever signal is present.

    Raises:
        ArgumentError: no signal has a candidate axis.
    """
    for value in (
        signals.losses,
        signals.alignment,
        signals.gram,
        signals.squared_norms,
        signals.valid,
        signals.sources,
        signals.reference_losses,
    ):
        if value is not None:
            return value.shape[0]
    raise ArgumentError(
        "the signals are all empty: pass at least one field with the candidates on axis 0, e.g. losses or valid"
    )


def eligible(signals: Signals, scores: Array) -> Array:
    """bool[n]: candidates that may be picked: valid, with a finite loss and a finite score."""
    allowed = jnp.isfinite(scores)
    if signals.valid is not None:
        allowed &= signals.valid
    if signals.losses is not None:
        allowed &= jnp.isfinite(signals.losses)
    return allowed
