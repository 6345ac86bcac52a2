"""Scoring in one pass: the factors of all rows are kept, give the signals, and then the update of the kept rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from greats_jax.errors import ArgumentError
from greats_jax.ghost import PerExampleGrads, value_and_per_example_grads
from greats_jax.training.measures import Sums, any_aligned, own_sums, signals_from
from greats_jax.training.rows import (
    RowLayout,
    even_rows,
    merge_rows,
    no_validation,
    spread_rows,
    valid_rows,
    validation_facts,
)
from greats_jax.training.scoring import (
    STEERED,
    Kept,
    Scored,
    Scorer,
    ScoringTask,
    Update,
    mended,
    projection_key,
)
from greats_jax.training.split_loss import SplitLoss, make_split_backward
from greats_jax.training.state import TrainState, floating, with_floating
from greats_jax.training.targets import aligned, validation_weights

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
        update_by_leaf: `update_by_leaf(shares) -> gradient`, from shares of all rows for each floating parameter; None
            if the loss is split.
    """

    losses: Array
    aux: Any
    grads: PerExampleGrads
    update: Callable[[Array, Array], PyTree]
    to_params: Callable[[PyTree], PyTree]
    from_params: Callable[[PyTree], PyTree]
    update_by_leaf: Callable[[PyTree], PyTree] | None = None


def one_pass_scorer(task: ScoringTask) -> Scorer:
    """Scorer of rules that need gradients."""
    backward = _make_backward(task)
    if not task.needs & STEERED:
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
            examples, original = even_rows(validation, task.spread)
            rows = backward(state.params, frozen, examples)
            usable = _usable(task, rows.losses, rows.grads, examples) & original
            weights = validation_weights(task.targets, rows.losses, usable, examples)
            fresh = rows.to_params(rows.grads.weighted_sum(weights))
            facts = validation_facts(rows.losses, usable, original)
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

        def split_backward(params: PyTree, frozen: PyTree, rows: PyTree) -> Backward:
            found = Backward(*split(params, frozen, rows))
            return found._replace(grads=found.grads.over(task.spread))

        return split_backward
    transform = value_and_per_example_grads(task.loss_fn, has_aux=task.has_aux)

    def backward(params: PyTree, frozen: PyTree, rows: PyTree) -> Backward:
        losses, grads = transform(params, frozen, rows)
        losses, aux = losses if task.has_aux else (losses, None)
        if leaves is not None:
            # A row may score well by these parameters and still spoil the update of the others: it must not be picked.
            losses = jnp.where(grads.finite(), losses, jnp.nan)

        def update(indices: Array, shares: Array) -> PyTree:
            if task.spread is None:
                return grads[indices].weighted_sum(shares)
            # Kept rows may all be on one device. Taking them out would send their factors to the others; as rows of
            # weight 0 the dropped ones cost their part of this product, and nothing but the sum is sent.
            return grads.weighted_sum(jnp.zeros(grads.n).at[indices].add(shares))

        scored = grads if leaves is None else grads.only(leaves)
        return Backward(
            losses,
            aux,
            scored.over(task.spread),
            update,
            floating,
            lambda direction: with_floating(params, direction),
            lambda shares: grads.weighted_sum(with_floating(params, shares)),
        )

    return backward


def _without_validation(task: ScoringTask, backward: Callable[..., Backward]) -> Scorer:
    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        rows = backward(state.params, frozen, spread_rows(candidates, task.spread))
        sums = _own_sums(task, rows.grads, projection_key(state))
        signals = signals_from(task, sums, rows.losses, valid_rows(task.is_valid, candidates))
        return Scored(
            signals,
            _kept(task, rows, state.params, frozen, candidates),
            state.direction,
            *no_validation(),
            aux=rows.aux,
        )

    return score


def _with_direction(task: ScoringTask, backward: Callable[..., Backward]) -> Scorer:
    find = make_direction(task)

    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        direction, (loss, found, used, rejected) = find(state, frozen, validation)
        rows = backward(state.params, frozen, spread_rows(candidates, task.spread))
        target = rows.from_params(direction) if "alignment" in task.needs else None
        sums = _own_sums(task, rows.grads, projection_key(state), target)
        sums |= _along(task, state, rows, rows.grads, direction)
        signals = signals_from(task, sums, rows.losses, valid_rows(task.is_valid, candidates))
        ok = found & any_aligned(sums)
        kept, by_leaf = _kept(task, rows, state.params, frozen, candidates), rows.update_by_leaf
        return Scored(signals, kept, direction, loss, ok, used, rejected, rows.aux, by_leaf)

    return score


def _merged(task: ScoringTask, backward: Callable[..., Backward]) -> Scorer:
    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        validation, original = even_rows(validation, task.spread)
        merged, layout = merge_rows(candidates, validation, task.spread)
        rows = backward(state.params, frozen, merged)
        (losses, held_out), (ours, theirs) = layout.part(rows.losses), rows.grads.split(layout.n, layout.parts)
        usable = _usable(task, held_out, theirs, validation) & original
        weights = validation_weights(task.targets, held_out, usable, validation)
        sums = _merged_sums(task, rows.grads, layout, weights, projection_key(state))
        if task.needs & STEERED != {"alignment"}:
            direction = rows.to_params(theirs.weighted_sum(weights))
            sums |= _along(task, state, rows, ours, direction)
        signals = signals_from(task, sums, losses, valid_rows(task.is_valid, candidates))
        facts = validation_facts(held_out, usable, original)
        aux = jax.tree.map(lambda x: layout.part(x)[0], rows.aux)
        by_leaf = _of_candidates(rows.update_by_leaf, layout)
        kept = _kept(task, rows, state.params, frozen, candidates, layout.candidates)
        return Scored(signals, kept, state.direction, *facts, aux, by_leaf)

    return score


def _of_candidates(update: Callable[[PyTree], PyTree] | None, layout: RowLayout) -> Callable[[PyTree], PyTree] | None:
    """The update from shares of the candidates alone."""
    if update is None:
        return None

    def spread(shares: Array) -> Array:
        return jnp.zeros((*shares.shape[:-1], layout.n + layout.m)).at[..., layout.candidates].set(shares)

    return lambda shares: update(jax.tree.map(spread, shares))


def _own_sums(task: ScoringTask, grads: PerExampleGrads, key: Array, direction: PyTree = None) -> Sums:
    return own_sums(grads, task.needs, task.scoring.projection, key, groups=task.groups, direction=direction)


def _merged_sums(task: ScoringTask, grads: PerExampleGrads, layout: RowLayout, weights: Array, key: Array) -> Sums:
    projection, (ours, theirs) = task.scoring.projection, grads.split(layout.n, layout.parts)
    if "alignment" not in task.needs:
        return _own_sums(task, ours, key)
    if projection is not None and projection.alignment == "projected":
        features, targets = layout.part(grads.project(projection.rank, key))
        return {"features": features, "alignment": aligned(targets @ features.T, weights)}
    if weights.ndim == 2:
        return {**_own_sums(task, ours, key), "alignment": aligned(theirs.cross(ours), weights)}
    if projection is None and "gram" in task.needs and task.groups == 1:
        gram, alignment = ours.gram_and_alignment(theirs, weights)
        return {"gram": gram, "alignment": alignment}
    return {**_own_sums(task, ours, key), "alignment": ours.align(theirs, weights)}


def _along(task: ScoringTask, state: TrainState, rows: Backward, grads: PerExampleGrads, direction: PyTree) -> Sums:
    """Those alignments of the candidates that are taken with a direction that has been formed."""
    sums: Sums = {}
    if "per_leaf_alignment" in task.needs:
        sums["per_leaf_alignment"] = grads.dot_by_leaf(rows.from_params(direction))
    if "preconditioned_alignment" in task.needs:
        target = rows.from_params(task.precondition(state, direction))
        projection = task.scoring.projection
        if projection is not None and projection.alignment == "projected":
            ours, theirs = (x.project(projection.rank, projection_key(state)) for x in (grads, grads.like(target)))
            sums["preconditioned_alignment"] = ours @ theirs[0]
        else:
            sums["preconditioned_alignment"] = grads.dot(target)
    return sums


def _kept(
    task: ScoringTask, rows: Backward, params: PyTree, frozen: PyTree, candidates: PyTree, places: Array | None = None
) -> Kept:
    """Loss and update of kept candidates; `places` i32[n]: where each is among the rows, None for in order."""

    def kept(indices: Array, shares: Array) -> Update:
        found = indices if places is None else places[indices]
        loss = jnp.sum(jnp.where(shares > 0, shares * rows.losses[found], 0.0))
        grads = floating(rows.update(found, shares))
        update = Update(loss, grads, optax.tree.norm(grads), shares > 0)
        if not isinstance(task.loss_fn, SplitLoss):
            return update  # the scores come from all parameters: a row that spoils the update has none
        return mended(update, task, params, frozen, candidates, indices, shares)

    return kept


def _usable(task: ScoringTask, losses: Array, grads: PerExampleGrads, rows: PyTree) -> Array:
    """bool[m]: validation rows with labels, a finite loss and a finite gradient."""
    return jnp.isfinite(losses) & grads.finite() & valid_rows(task.is_valid, rows)
