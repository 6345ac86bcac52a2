"""Scoring in one pass: the factors of all rows are kept, give the signals, and then the update of the kept rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from greats_jax.errors import ArgumentError
from greats_jax.ghost import PerExampleGrads, value_and_per_example_grads
from greats_jax.training.measures import own_sums, signals_from, weighted_rows
from greats_jax.training.scoring import (
    Kept,
    Scored,
    Scorer,
    ScoringTask,
    merge_rows,
    no_validation,
    projection_key,
    valid_rows,
    validation_facts,
)
from greats_jax.training.split_loss import SplitLoss, make_split_backward
from greats_jax.training.state import TrainState, floating, with_floating

Array = jax.Array
PyTree = Any


class Backward(NamedTuple):
    """A forward and a backward pass over some rows.

    Attributes:
        losses: f32[b].
        aux: auxiliary outputs of the rows, or None.
        grads: the gradients that scores are computed from.
        update: `update(indices, shares) -> gradient` of all parameters, `sum_i shares_i g_i`.
        to_params: from a direction of `grads` to one of the parameters.
        from_params: from a direction of the parameters to one of `grads`.
    """

    losses: Array
    aux: Any
    grads: PerExampleGrads
    update: Callable[[Array, Array], PyTree]
    to_params: Callable[[PyTree], PyTree]
    from_params: Callable[[PyTree], PyTree]


def one_pass_scorer(task: ScoringTask) -> Scorer:
    """Scorer of rules that need gradients."""
    backward = _make_backward(task)
    if "alignment" not in task.needs:
        return _without_validation(task, backward)
    if task.validation == "merged":
        return _merged(task, backward)
    return _with_direction(task, backward)


def make_direction(task: ScoringTask) -> Callable[..., tuple[PyTree, tuple[Array, Array, Array, Array]]]:
    """Build `direction(state, frozen, validation)`: the mean validation gradient, kept for `refresh_every` steps.

    Returns:
        The direction, like the floating parameters, and the facts of its rows. With no usable row the one before stays;
        before the first it is NaN and nothing can be picked.
    """
    backward = _make_backward(task)

    def direction(state: TrainState, frozen: PyTree, validation: PyTree) -> tuple[PyTree, tuple]:
        if state.direction is None:
            raise ArgumentError(
                "validation='cached' and micro-batches keep a direction in the state: "
                "create it with TrainState.create(..., reserve_direction=True)"
            )

        def refresh() -> tuple[PyTree, tuple[Array, Array, Array, Array]]:
            rows = backward(state.params, frozen, validation)
            usable = _usable(task, rows.losses, rows.grads, validation)
            fresh = rows.to_params(rows.grads.weighted_sum(usable / jnp.maximum(usable.sum(), 1)))
            facts = validation_facts(rows.losses, usable)
            return jax.tree.map(lambda a, b: jnp.where(facts[1], a, b).astype(b.dtype), fresh, state.direction), facts

        if task.refresh_every == 1 or task.validation == "merged":
            return refresh()
        # A direction that was never set is NaN throughout: one entry tells.
        unset = jnp.isnan(jax.tree.leaves(state.direction)[0].ravel()[0])
        due = (state.step % task.refresh_every == 0) | unset
        return lax.cond(due, refresh, lambda: (state.direction, no_validation()))

    return direction


def _make_backward(task: ScoringTask) -> Callable[[PyTree, PyTree, PyTree], Backward]:
    leaves = task.scoring.leaves
    if isinstance(task.loss_fn, SplitLoss):
        split = make_split_backward(task.loss_fn, task.has_aux, leaves)
        return lambda params, frozen, rows: Backward(*split(params, frozen, rows))
    transform = value_and_per_example_grads(task.loss_fn, has_aux=task.has_aux)

    def backward(params: PyTree, frozen: PyTree, rows: PyTree) -> Backward:
        losses, grads = transform(params, frozen, rows)
        losses, aux = losses if task.has_aux else (losses, None)
        return Backward(
            losses,
            aux,
            grads if leaves is None else grads.only(leaves),
            lambda indices, shares: grads[indices].weighted_sum(shares),
            floating,
            lambda direction: with_floating(params, direction),
        )

    return backward


def _without_validation(task: ScoringTask, backward: Callable[..., Backward]) -> Scorer:
    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        rows = backward(state.params, frozen, candidates)
        sums = own_sums(rows.grads, task.needs, task.scoring.projection, projection_key(state))
        signals = signals_from(sums, task.needs, rows.losses, valid_rows(task.is_valid, candidates))
        return Scored(signals, _kept(rows), state.direction, *no_validation(), aux=rows.aux)

    return score


def _with_direction(task: ScoringTask, backward: Callable[..., Backward]) -> Scorer:
    find = make_direction(task)

    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        direction, (loss, found, used, rejected) = find(state, frozen, validation)
        rows = backward(state.params, frozen, candidates)
        sums = own_sums(
            rows.grads,
            task.needs,
            task.scoring.projection,
            projection_key(state),
            direction=rows.from_params(direction),
        )
        signals = signals_from(sums, task.needs, rows.losses, valid_rows(task.is_valid, candidates))
        ok = found & jnp.isfinite(sums["alignment"]).any()
        return Scored(signals, _kept(rows), direction, loss, ok, used, rejected, rows.aux)

    return score


def _merged(task: ScoringTask, backward: Callable[..., Backward]) -> Scorer:
    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        merged, n = merge_rows(candidates, validation)
        rows = backward(state.params, frozen, merged)
        usable = _usable(task, rows.losses[n:], rows.grads[n:], validation)
        weights = usable / jnp.maximum(usable.sum(), 1)
        sums = _merged_sums(task, rows.grads, n, weights, projection_key(state))
        signals = signals_from(sums, task.needs, rows.losses[:n], valid_rows(task.is_valid, candidates))
        return Scored(
            signals,
            _kept(rows),
            state.direction,
            *validation_facts(rows.losses[n:], usable),
            aux=jax.tree.map(lambda x: x[:n], rows.aux),
        )

    return score


def _merged_sums(task: ScoringTask, grads: PerExampleGrads, n: int, weights: Array, key: Array) -> dict[str, Array]:
    projection = task.scoring.projection
    if projection is not None and projection.alignment == "projected":
        features = grads.project(projection.rank, key)
        return {"features": features[:n], "alignment": features[:n] @ weighted_rows(features[n:], weights)}
    ours, theirs = grads[:n], grads[n:]
    if projection is None and "gram" in task.needs:
        gram, alignment = grads.gram_and_alignment(n, weights)
        return {"gram": gram, "alignment": alignment}
    return {**own_sums(ours, task.needs, projection, key), "alignment": ours.align(theirs, weights)}


def _kept(rows: Backward) -> Kept:
    def kept(indices: Array, shares: Array) -> tuple[Array, PyTree, Any]:
        loss = jnp.sum(jnp.where(shares > 0, shares * rows.losses[indices], 0.0))
        return loss, rows.update(indices, shares), None

    return kept


def _usable(task: ScoringTask, losses: Array, grads: PerExampleGrads, rows: PyTree) -> Array:
    """bool[m]: validation rows with labels, a finite loss and a finite gradient."""
    return jnp.isfinite(losses) & grads.finite() & valid_rows(task.is_valid, rows)
