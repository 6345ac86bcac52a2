"""From rows to signals: what a rule needs and nothing more, by a forward pass or by factored gradients.

A scorer returns, beside the signals, how to get the update of the kept rows: from factors that already exist (one
pass), or by a plain gradient of the kept rows when no candidate gradient was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from greats_jax.errors import ArgumentError
from greats_jax.ghost import PerExampleGrads, value_and_per_example_grads
from greats_jax.selection import Signals
from greats_jax.training.state import TrainState, floating, with_floating

Array = jax.Array
PyTree = Any
Kept = Callable[[Array, Array], tuple[Array, PyTree, Any]]

_FORWARD_ONLY = {"losses", "valid", "sources", "memory", "optimizer"}


class Scored(NamedTuple):
    """Signals of the candidates and what else the step needs.

    Attributes:
        signals: for the rule.
        kept: `kept(indices, shares) -> (loss, gradient, aux)`: the weighted mean over the kept rows.
        direction: the validation direction to carry in the state.
        validation_loss: f32[], NaN if not computed.
        validation_ok: bool[], False when scoring had no validation row to go by.
        n_validation: i32[], rows used.
        n_validation_rejected: i32[], rows dropped.
        aux: auxiliary outputs for all candidates, when scoring produced them.
    """

    signals: Signals
    kept: Kept
    direction: PyTree
    validation_loss: Array
    validation_ok: Array
    n_validation: Array
    n_validation_rejected: Array
    aux: Any = None


Scorer = Callable[[TrainState, PyTree, PyTree, PyTree], Scored]


def make_scorer(
    loss_fn: Callable[..., Any],
    needs: frozenset[str],
    has_aux: bool,
    validation: str,
    refresh_every: int,
    is_valid: Callable[[PyTree], Array] | None,
) -> Scorer:
    """Choose the cheapest way to the signals in `needs`."""
    if needs <= _FORWARD_ONLY:
        return _forward_scorer(loss_fn, has_aux, "losses" in needs, is_valid)
    if "alignment" not in needs:
        return _factor_scorer(loss_fn, needs, has_aux, is_valid)
    if validation == "cached":
        return _cached_scorer(loss_fn, needs, has_aux, refresh_every, is_valid)
    return _merged_scorer(loss_fn, needs, has_aux, is_valid)


def _forward_scorer(loss_fn: Callable[..., Any], has_aux: bool, with_losses: bool, is_valid: Callable | None) -> Scorer:
    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        losses = aux = None
        if with_losses:
            values = _batched(loss_fn, state.params, frozen, candidates)
            losses, aux = values if has_aux else (values, None)

        def kept(indices: Array, shares: Array) -> tuple[Array, PyTree, Any]:
            # An empty slot repeats the first pick: its share is 0, but a non-finite row would still spoil the gradient.
            indices = jnp.where(shares > 0, indices, indices[0])
            rows = jax.tree.map(lambda x: jnp.take(x, indices, axis=0), candidates)

            def mean(params: PyTree) -> tuple[Array, Any]:
                values = _batched(loss_fn, params, frozen, rows)
                values, extra = values if has_aux else (values, None)
                return jnp.sum(jnp.where(shares > 0, shares * values, 0.0)), extra

            (loss, extra), grads = _gradient(mean, state.params)
            return loss, grads, extra

        signals = Signals(losses=losses, valid=_valid(is_valid, candidates))
        return Scored(signals, kept, state.direction, *_no_validation(), aux=aux)

    return score


def _factor_scorer(
    loss_fn: Callable[..., Any], needs: frozenset[str], has_aux: bool, is_valid: Callable | None
) -> Scorer:
    transform = value_and_per_example_grads(loss_fn, has_aux=has_aux)

    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        losses, grads = transform(state.params, frozen, candidates)
        losses, aux = losses if has_aux else (losses, None)
        signals = _signals(needs, losses, grads, is_valid, candidates)
        return Scored(signals, _from_factors(losses, grads), state.direction, *_no_validation(), aux=aux)

    return score


def _merged_scorer(
    loss_fn: Callable[..., Any], needs: frozenset[str], has_aux: bool, is_valid: Callable | None
) -> Scorer:
    transform = value_and_per_example_grads(loss_fn, has_aux=has_aux)

    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        rows, n = _merge(candidates, validation)
        losses, grads = transform(state.params, frozen, rows)
        losses, aux = losses if has_aux else (losses, None)
        ours, theirs = grads[:n], grads[n:]
        usable = _usable(losses[n:], theirs, is_valid, validation)
        weights = usable / jnp.maximum(usable.sum(), 1)
        if "gram" in needs:
            gram, alignment = grads.gram_and_alignment(n, weights)
        else:
            gram, alignment = None, ours.align(theirs, weights)
        signals = _signals(needs, losses[:n], ours, is_valid, candidates, alignment, gram)
        aux = jax.tree.map(lambda x: x[:n], aux)
        return Scored(
            signals, _from_factors(losses[:n], ours), state.direction, *_validation(losses[n:], usable), aux=aux
        )

    return score


def _cached_scorer(
    loss_fn: Callable[..., Any], needs: frozenset[str], has_aux: bool, refresh_every: int, is_valid: Callable | None
) -> Scorer:
    transform = value_and_per_example_grads(loss_fn, has_aux=has_aux)

    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        if state.direction is None:
            raise ArgumentError(
                "validation='cached' keeps a direction in the state: "
                "create it with TrainState.create(..., reserve_direction=True)"
            )

        def refresh() -> tuple[PyTree, tuple[Array, Array, Array, Array]]:
            losses, grads = transform(state.params, frozen, validation)
            losses = losses[0] if has_aux else losses
            usable = _usable(losses, grads, is_valid, validation)
            fresh = floating(grads.weighted_sum(usable / jnp.maximum(usable.sum(), 1)))
            found = _validation(losses, usable)
            # With no usable row the old direction stays; before the first refresh it is NaN and nothing is eligible.
            return jax.tree.map(lambda a, b: jnp.where(found[1], a, b).astype(b.dtype), fresh, state.direction), found

        # A direction that was never set is NaN throughout: one entry tells.
        unset = jnp.isnan(jax.tree.leaves(state.direction)[0].ravel()[0])
        direction, (loss, found, used, rejected) = lax.cond(
            (state.step % refresh_every == 0) | unset, refresh, lambda: (state.direction, _no_validation())
        )
        losses, grads = transform(state.params, frozen, candidates)
        losses, aux = losses if has_aux else (losses, None)
        target = with_floating(state.params, direction)
        gram, alignment = grads.gram_and_dot(target) if "gram" in needs else (None, grads.dot(target))
        signals = _signals(needs, losses, grads, is_valid, candidates, alignment, gram)
        ok = found & jnp.isfinite(alignment).any()
        return Scored(signals, _from_factors(losses, grads), direction, loss, ok, used, rejected, aux)

    return score


def _signals(
    needs: frozenset[str],
    losses: Array,
    grads: PerExampleGrads,
    is_valid: Callable | None,
    candidates: PyTree,
    alignment: Array | None = None,
    gram: Array | None = None,
) -> Signals:
    """What the rule needs; the Gram is contracted here unless scoring already has it."""
    return Signals(
        losses=losses,
        alignment=alignment,
        gram=grads.gram() if gram is None and "gram" in needs else gram,
        squared_norms=grads.squared_norms() if "squared_norms" in needs else None,
        valid=_valid(is_valid, candidates),
    )


def _from_factors(losses: Array, grads: PerExampleGrads) -> Kept:
    def kept(indices: Array, shares: Array) -> tuple[Array, PyTree, Any]:
        loss = jnp.sum(jnp.where(shares > 0, shares * losses[indices], 0.0))
        return loss, grads[indices].weighted_sum(shares), None

    return kept


def _merge(candidates: PyTree, validation: PyTree) -> tuple[PyTree, int]:
    """Candidates first, validation rows after them, in one batch."""
    a, b = (jax.tree_util.tree_flatten_with_path(t) for t in (candidates, validation))
    if a[1] != b[1]:
        raise ArgumentError(
            f"candidates and validation have different structures: {a[1]} and {b[1]}; merged scoring needs the same"
        )
    for (path, x), (_, y) in zip(a[0], b[0], strict=True):
        if x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
            raise ArgumentError(
                f"candidates and validation differ at {jax.tree_util.keystr(path) or '<root>'}: "
                f"{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}; "
                "merged scoring needs equal shapes after axis 0: pad them alike, or use validation='cached'"
            )
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), candidates, validation), len(a[0][0][1])


def _usable(losses: Array, grads: PerExampleGrads, is_valid: Callable | None, rows: PyTree) -> Array:
    """bool[m]: validation rows with labels, a finite loss and a finite gradient."""
    usable = jnp.isfinite(losses) & grads.finite()
    valid = _valid(is_valid, rows)
    return usable if valid is None else usable & valid


def _valid(is_valid: Callable | None, rows: PyTree) -> Array:
    """bool[b], all True without a test; its length also tells a rule that needs no signal how many rows there are."""
    n = len(jax.tree.leaves(rows)[0])
    return jnp.ones(n, bool) if is_valid is None else jax.vmap(is_valid)(rows)


def _validation(losses: Array, usable: Array) -> tuple[Array, Array, Array, Array]:
    used = usable.sum(dtype=jnp.int32)
    loss = jnp.where(usable, losses, 0.0).sum().astype(jnp.float32) / used
    return loss, used > 0, used, jnp.int32(usable.size) - used


def _no_validation() -> tuple[Array, Array, Array, Array]:
    zero = jnp.zeros((), jnp.int32)
    return jnp.asarray(jnp.nan, jnp.float32), jnp.asarray(True), zero, zero


def _batched(loss_fn: Callable[..., Any], params: PyTree, frozen: PyTree, rows: PyTree) -> Any:
    return jax.vmap(loss_fn, in_axes=(None, None, 0))(params, frozen, rows)


def _gradient(mean: Callable[[PyTree], tuple[Array, Any]], params: PyTree) -> tuple[tuple[Array, Any], PyTree]:
    """Value and gradient in the floating leaves."""
    return jax.value_and_grad(lambda trained: mean(with_floating(params, trained)), has_aux=True)(floating(params))
