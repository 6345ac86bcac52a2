"""Scoring in two passes: contract each layer inside the backward pass, drop it, and run the kept rows again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import block_diag

from greats_jax.errors import ArgumentError
from greats_jax.ghost import PerExampleGrads, value_and_contraction
from greats_jax.training.measures import Sums, any_aligned, own_sums, signals_from
from greats_jax.training.one_pass import make_direction
from greats_jax.training.rows import (
    RowLayout,
    even_rows,
    merge_rows,
    no_validation,
    row_count,
    spread_rows,
    valid_rows,
    validation_facts,
)
from greats_jax.training.scoring import (
    STEERED,
    Scored,
    Scorer,
    ScoringTask,
    keeps_direction,
    kept_by_rows,
    projection_key,
)
from greats_jax.training.state import TrainState, with_floating
from greats_jax.training.targets import aligned, validation_weights

Array = jax.Array
PyTree = Any
Contract = Callable[..., Sums]


def two_pass_scorer(task: ScoringTask) -> Scorer:
    """Scorer of rules that need gradients, in the memory of a plain step."""
    if not task.needs & STEERED:
        return _without_validation(task)
    if keeps_direction(task.needs, task.validation, task.scoring):
        return _with_direction(task)
    return _merged(task)


def _without_validation(task: ScoringTask) -> Scorer:
    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        losses, aux, sums = _in_parts(task, state, frozen, candidates, {})
        signals = signals_from(task, sums, losses, valid_rows(task.is_valid, candidates))
        kept = kept_by_rows(task, state.params, frozen, candidates)
        return Scored(signals, kept, state.direction, *no_validation(), aux=aux)

    return score


def _with_direction(task: ScoringTask) -> Scorer:
    find = make_direction(task)

    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        direction, (loss, found, used, rejected) = find(state, frozen, validation)
        targets = {}
        if "alignment" in task.needs:
            targets["direction"] = with_floating(state.params, direction)
        if "preconditioned_alignment" in task.needs:
            targets["preconditioned"] = with_floating(state.params, task.precondition(state, direction))
        losses, aux, sums = _in_parts(task, state, frozen, candidates, targets)
        signals = signals_from(task, sums, losses, valid_rows(task.is_valid, candidates))
        ok = found & any_aligned(sums)
        kept = kept_by_rows(task, state.params, frozen, candidates)
        return Scored(signals, kept, direction, loss, ok, used, rejected, aux)

    return score


def _in_parts(
    task: ScoringTask, state: TrainState, frozen: PyTree, candidates: PyTree, targets: dict[str, PyTree]
) -> tuple[Array, Any, Sums]:
    """Losses, auxiliary outputs and sums of all candidates, from `micro_batches` parts of them."""
    key = projection_key(state)

    def contract(grads: PerExampleGrads, layer: Array | None, *directions: PyTree) -> Sums:
        named = dict(zip(targets, directions, strict=True))
        grads = grads.over(task.spread)
        return own_sums(grads, task.needs, task.scoring.projection, key, layer, task.groups, **named)

    like = tuple(targets.values())

    stream = _stream(task, contract)
    n, count = row_count(candidates), task.scoring.micro_batches
    if n % count:
        raise ArgumentError(f"{n} candidates cannot be scored in {count} equal micro-batches: choose a divisor of {n}")
    parts = jax.tree.map(lambda x: x.reshape(count, n // count, *x.shape[1:]), candidates)

    def score_part(rows: PyTree) -> tuple[Array, Any, Sums]:
        return stream(state.params, frozen, spread_rows(rows, task.spread), like=like)

    losses, aux, sums = jax.lax.map(score_part, parts)
    joined = {name: _join(x) for name, x in sums.items() if name != "gram"}
    if "gram" in sums:
        joined["gram"] = sums["gram"][0] if count == 1 else block_diag(*sums["gram"])
    return _join(losses), jax.tree.map(_join, aux), joined


def _join(parts: Array) -> Array:
    """[parts, b, ...] -> [parts * b, ...]."""
    return parts.reshape(-1, *parts.shape[2:])


def _merged(task: ScoringTask) -> Scorer:
    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        validation, original = even_rows(validation, task.spread)
        rows, layout = merge_rows(candidates, validation, task.spread)
        contract = _merged_contract(task, layout, projection_key(state))
        merged, aux, sums = _stream(task, contract)(state.params, frozen, rows)
        losses, held_out = layout.part(merged)
        usable = jnp.isfinite(held_out) & (sums.pop("broken") == 0) & valid_rows(task.is_valid, validation) & original
        weights = validation_weights(task.targets, held_out, usable, validation)
        signals = signals_from(task, _aligned(sums, layout, weights), losses, valid_rows(task.is_valid, candidates))
        kept = kept_by_rows(task, state.params, frozen, candidates)
        facts = validation_facts(held_out, usable, original)
        return Scored(signals, kept, state.direction, *facts, aux=jax.tree.map(lambda x: layout.part(x)[0], aux))

    return score


def _merged_contract(task: ScoringTask, layout: RowLayout, key: Array) -> Contract:
    """What of each layer is kept when candidates and validation rows share a batch."""
    projection = task.scoring.projection

    def contract(grads: PerExampleGrads, layer: Array | None) -> Sums:
        grads = grads.over(task.spread)
        ours, theirs = grads.split(layout.n, layout.parts)
        broken = {"broken": (~theirs.finite()).astype(jnp.int32)}
        if projection is not None and projection.alignment == "projected":
            return {**broken, "features": grads.project(projection.rank, key, layer)}
        if projection is None and "gram" in task.needs and task.groups == 1:
            return {**broken, "table": grads.gram()}
        own = own_sums(ours, task.needs, projection, key, layer, task.groups)
        return {**broken, **own, "cross": ours.cross(theirs)}

    return contract


def _aligned(sums: Sums, layout: RowLayout, weights: Array) -> Sums:
    """The sums of the candidates alone, with their alignment."""
    if "table" in sums:
        ours, theirs = layout.part(sums["table"])
        return {"gram": layout.part(ours.T)[0].T, "alignment": aligned(layout.part(theirs.T)[0].T, weights)}
    if "cross" in sums:
        rest = {name: x for name, x in sums.items() if name != "cross"}
        return {**rest, "alignment": aligned(sums["cross"].T, weights)}
    features, targets = layout.part(sums["features"])
    return {"features": features, "alignment": aligned(targets @ features.T, weights)}


def _stream(task: ScoringTask, contract: Contract) -> Callable[..., tuple[Array, Any, Sums]]:
    """Losses, auxiliary outputs (None without) and contracted sums of some rows."""
    transform = value_and_contraction(task.loss_fn, contract, has_aux=task.has_aux, leaves=task.scoring.leaves)

    def stream(params: PyTree, frozen: PyTree, rows: PyTree, like: tuple[PyTree, ...] = ()) -> tuple[Array, Any, Sums]:
        losses, sums = transform(params, frozen, rows, like=like)
        losses, aux = losses if task.has_aux else (losses, None)
        return losses, aux, sums

    return stream
