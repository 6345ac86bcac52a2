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
        per_leaf_alignment: the alignment parameter by parameter: a pytree like the floating parameters of f32[n]
            (f32[layers, n] for stacked leaves).
        reference_losses: f32[n], losses of the same tokens under a frozen reference model.
        embeddings: f32[n, e] of the candidates.
        logit_summaries: the auxiliary outputs of the loss, leading axis n.
        sources: i32[n], index of the data source each candidate came from.
        valid: bool[n]; False for a candidate that must not be picked (no labels).
        memory: what the rule returned in `Selection.memory` at the step before.
        optimizer: read-only view of the optimizer state.
        preconditioned_alignment: f32[n], `<P g_i, mean validation gradient>`, P the optimizer's response to a gradient.
        validation_embeddings: f32[m, e] of the validation examples.
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
    preconditioned_alignment: Array | None = None
    validation_embeddings: Array | None = None


class Selection(NamedTuple):
    """k picks.

    Attributes:
        indices: i32[k], in the order of picking; an empty slot has index 0.
        weights: f32[k], relative; an empty slot has weight 0.
        scores: f32[n], what candidates were ranked by before the first pick, for reports and for rules made of others;
            None if the rule has none.
        memory: what the rule wants to see at the next step.
        overlap: f32[n, n], what having picked one candidate takes from the scores of the others; None for nothing.
    """

    indices: Array
    weights: Array
    scores: Array | None = None
    memory: Any = None
    overlap: Array | None = None


def candidate_count(signals: Signals) -> int:
    """Number of candidates n, from whichever signal is present.

    Raises:
        ArgumentError: no signal has a candidate axis.
    """
    counted = signals._replace(validation_embeddings=None, memory=None, optimizer=None)
    for name, value in zip(Signals._fields, counted, strict=True):
        # Every signal of the candidates has their axis first, but for one: stacked leaves have layers before it.
        for leaf in jax.tree.leaves(value):
            return leaf.shape[-1] if name == "per_leaf_alignment" else leaf.shape[0]
    raise ArgumentError(
        "the signals are all empty: pass at least one field with the candidates on axis 0, e.g. losses or valid"
    )


def present(signals: Signals, name: str) -> Any:
    """The signal of that name.

    Raises:
        ArgumentError: it was not given.
    """
    value = getattr(signals, name)
    if value is None:
        raise ArgumentError(f"this rule needs the signal {name!r}: pass Signals({name}=...)")
    return value


def eligible(signals: Signals, scores: Array, overlap: Array | None = None) -> Array:
    """bool[n]: candidates that may be picked: valid, with a finite loss, score and overlap with itself."""
    allowed = jnp.isfinite(scores)
    if overlap is not None:
        allowed &= jnp.isfinite(jnp.diagonal(overlap))
    if signals.valid is not None:
        allowed &= signals.valid
    if signals.losses is not None:
        allowed &= jnp.isfinite(signals.losses)
    return allowed
