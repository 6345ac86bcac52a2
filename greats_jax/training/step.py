"""The selective training step: score, select, gather and update in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from greats_jax.errors import ArgumentError
from greats_jax.selection import Rule, Selection, Signals, get, in_groups
from greats_jax.training.measures import finite_rows
from greats_jax.training.placement import Placement
from greats_jax.training.scoring import EXACT, Scored, Scoring, Update
from greats_jax.training.signals import RowSignal, SignalOptions, choose, key_of, make_signals, rate_of
from greats_jax.training.split_loss import SplitLoss
from greats_jax.training.state import TrainState, floating, with_floating
from greats_jax.training.targets import Targets

Array = jax.Array
PyTree = Any

TARGET_ONLY = "target_only"
"""In the place of a rule: train on the validation rows."""


class StepMetrics(NamedTuple):
    """Results of one step, on the device; NaN where the rule did not ask for the quantity.

    Attributes:
        loss: f32[], weighted mean loss of the kept candidates.
        candidate_losses: f32[n].
        validation_loss: f32[], mean over the validation rows used in this step.
        scores: f32[n], what the rule ranked by.
        selected: i32[k], indices into the candidates in the order of picking; a pytree like the floating parameters of
            i32[k] (i32[layers, k]) if the rule chooses for every parameter.
        weights: f32[k], 0 for an empty slot; a pytree like `selected`.
        shares: f32[n], what part of the update each candidate is, in sum 1; the mean over parameters and layers if the
            rule chooses for each.
        n_valid: i32[], candidates that have labels.
        n_rejected: i32[], valid candidates left out because their loss, score or gradient is not finite, as far as that
            was computed: with a rule that needs no gradients, only kept candidates have one.
        n_validation: i32[], validation rows used.
        n_validation_rejected: i32[], validation rows dropped as not finite or without labels.
        skipped: bool[], no update was made (nothing could be picked, no validation row left, or a non-finite gradient).
        grad_norm: f32[], of the mean gradient of the kept candidates, before the optimizer's clipping.
        learning_rate: f32[], eta as the rule saw it.
        aux: auxiliary outputs of the loss for the candidates (for the kept rows if the rule needs no losses), if any.
    """

    loss: Array
    candidate_losses: Array
    validation_loss: Array
    scores: Array
    selected: Any
    weights: Any
    shares: Array
    n_valid: Array
    n_rejected: Array
    n_validation: Array
    n_validation_rejected: Array
    skipped: Array
    grad_norm: Array
    learning_rate: Array
    aux: Any = None


def make_selective_step(
    loss_fn: Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any]],
    optimizer: optax.GradientTransformation,
    objective: str | Rule = "greats",
    keep: int | float = 4,
    validation: Literal["merged", "cached"] = "merged",
    refresh_every: int = 1,
    learning_rate: float | optax.Schedule | None = None,
    is_valid: Callable[[PyTree], Array] | None = None,
    has_aux: bool = False,
    row_weight: Callable[[PyTree], Array] | None = None,
    scoring: Scoring = EXACT,
    row_signals: Mapping[str, RowSignal] | None = None,
    targets: Targets | None = None,
    preconditioner: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None,
    placement: Placement | None = None,
    groups: int = 1,
) -> Callable[[TrainState, PyTree, PyTree, PyTree], tuple[TrainState, StepMetrics]]:
    """Build `step(state, frozen, candidates, validation) -> (state, metrics)`, compiled once per shape.

    Args:
        loss_fn: `loss_fn(params, frozen, example) -> scalar` (or `(scalar, aux)` with `has_aux`). A pair
            `(trunk, head)` or a `SplitLoss` is scored by the head's parameters, and the backward pass of rows that are
            not kept stops below the head.
        optimizer: applied to the weighted mean gradient of the kept candidates.
        objective: a registered rule, its name or an expression (see `selection.get`); `target_only` trains on the
            validation rows instead, all of them: the control that selection has to beat.
        keep: k, how many candidates are kept; a fraction of them when it is a float.
        validation: `merged`: the validation rows ride in the candidates' batch, one pass for both; `cached`: their mean
            gradient is computed every `refresh_every` steps and kept in the state.
        refresh_every: R of the cached mode.
        learning_rate: eta for rules that use it; None takes the rate that `optax.inject_hyperparams` applies.
        is_valid: `is_valid(example) -> bool`, False for a row that must not be picked (no labels).
        has_aux: whether the loss returns auxiliary outputs.
        row_weight: `row_weight(example) -> scalar`, the share of a kept example in the update (e.g. its number of label
            tokens); None weighs examples equally.
        scoring: one pass or two, micro-batches, which parameters score, projection; see `Scoring`.
        row_signals: `{"sources": lambda frozen, row: ..., ...}`, for rules that need what only the caller knows of a
            row: `reference_losses` (scalar), `embeddings` (f32[e], of candidates and validation rows) and `sources`
            (integer).
        targets: several target tasks among the validation rows, and how a candidate's alignments with them combine.
        preconditioner: `preconditioner(opt_state, params, direction) -> direction`, what `preconditioned_alignment` is
            taken with; None is the optimizer's own response (`training.preconditioning`), which for an optimizer that
            accumulates gradients has to be that of the one inside it.
        placement: where arrays live on a mesh of devices; None for one device. The choice is the same as there: what
            has to cross between devices for it does (see docs/devices.md).
        groups: choose `keep / groups` from each of so many runs of candidates, apart from each other. With as many
            groups as `placement.row_parts` every device chooses among its own, and no candidate's gradient crosses.

    Returns:
        The step. It donates its state, never asks the host for a value and can be traced under `jit` or `scan`. A rule
        that needs only losses costs a forward pass of the candidates and a plain step on the kept ones.

    Raises:
        ArgumentError: settings that cannot work; when called, also `keep` larger than the batch, batches that cannot be
            merged, or a rule that needs eta where none is known.
    """
    _check_keep(keep)
    target_only = objective == TARGET_ONLY
    if target_only:
        objective, keep, groups = "regular", 1.0, 1
    rule = get(objective) if isinstance(objective, str) else objective
    if isinstance(loss_fn, tuple) and not isinstance(loss_fn, SplitLoss):
        loss_fn = SplitLoss(*loss_fn)
    spread = None if placement is None else placement.spread
    rule = in_groups(rule, groups)
    options = SignalOptions(
        validation,
        refresh_every,
        learning_rate,
        is_valid,
        has_aux,
        scoring,
        row_signals or {},
        targets,
        preconditioner,
        spread,
        groups,
    )
    find = make_signals(loss_fn, optimizer, rule, options)

    def step(
        state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree
    ) -> tuple[TrainState, StepMetrics]:
        if target_only:
            candidates, validation = validation, None
        n = len(jax.tree.leaves(candidates)[0])
        rate = rate_of(learning_rate, optimizer, state)
        scored, signals = find(state, frozen, candidates, validation)
        selection = choose(rule, _slots(keep, n), signals, rate, key_of(state))
        row_weights = None if row_weight is None else jax.vmap(row_weight)(candidates).astype(jnp.float32)
        taken = _take(scored, selection, row_weights, n)
        usable = scored.validation_ok & taken.any & jnp.isfinite(taken.update.norm) & jnp.isfinite(taken.update.loss)
        params, opt_state = _update(optimizer, state, taken.update.grads, usable)
        memory = getattr(selection, "memory", None)
        if memory is None:
            memory = signals.memory
        new = TrainState(params, opt_state, state.step + 1, state.key, scored.direction, memory)
        return new, _metrics(scored, selection, taken, usable, rate, n)

    if placement is None:
        return jax.jit(step, donate_argnums=0)
    # Rows come as they are, cut or whole; `rows` spreads them.
    given = (placement.state, placement.frozen, None, None)
    return jax.jit(step, donate_argnums=0, in_shardings=given, out_shardings=(placement.state, placement.everywhere))


class _Taken(NamedTuple):
    """What a selection gives: its update, the weights of the slots that took part, shares f32[n], whether any did."""

    update: Update
    weights: Any
    shares: Array
    any: Array


def _take(scored: Scored, selection: Any, row_weights: Array | None, n: int) -> _Taken:
    """The update of the kept rows."""
    if not isinstance(selection, Selection):
        return _take_by_leaf(scored, selection, row_weights, n)
    weights = selection.weights if row_weights is None else selection.weights * row_weights[selection.indices]
    total = weights.sum()
    shares = weights / jnp.where(total > 0, total, 1.0)
    update = scored.kept(selection.indices, shares)
    used = jnp.where(update.used, shares, 0.0)
    spread = jnp.zeros(n).at[selection.indices].add(used / jnp.where(used.sum() > 0, used.sum(), 1.0))
    return _Taken(update, jnp.where(update.used, selection.weights, 0.0), spread, used.sum() > 0)


def _take_by_leaf(scored: Scored, selections: PyTree, row_weights: Array | None, n: int) -> _Taken:
    """The update of which every parameter, or layer of one, is that of its own kept rows."""
    if scored.kept_by_leaf is None:
        raise ArgumentError("a rule that chooses for every parameter must need per_leaf_alignment")

    def spread(selection: Selection) -> Array:
        def one(indices: Array, weights: Array) -> Array:
            dense = jnp.zeros(n).at[indices].add(weights)
            dense = dense if row_weights is None else dense * row_weights
            return dense / jnp.where(dense.sum() > 0, dense.sum(), 1.0)

        return one(*selection[:2]) if selection.indices.ndim == 1 else jax.vmap(one)(*selection[:2])

    def is_selection(x: Any) -> bool:
        return isinstance(x, Selection)

    shares = jax.tree.map(spread, selections, is_leaf=is_selection)
    grads = scored.kept_by_leaf(shares)
    mean = jnp.concatenate([x.reshape(-1, n) for x in jax.tree.leaves(shares)]).mean(0)
    losses = scored.signals.losses
    assert losses is not None  # gradients come with them
    loss = jnp.sum(jnp.where(mean > 0, mean * losses, 0.0))
    weights = jax.tree.map(lambda x: x.weights, selections, is_leaf=is_selection)
    update = Update(loss, grads, optax.tree.norm(floating(grads)), jnp.ones(0, bool))
    return _Taken(update, weights, mean, mean.sum() > 0)


def _check_keep(keep: int | float) -> None:
    if isinstance(keep, float):
        if not 0 < keep <= 1:
            raise ArgumentError(f"keep={keep}: a fraction of the candidates lies above 0 and at most at 1.0")
    elif keep < 1:
        raise ArgumentError(f"keep={keep}: at least one candidate must be kept")


def _slots(keep: int | float, n: int) -> int:
    """How many slots there are for n candidates."""
    if isinstance(keep, float):
        return max(1, round(keep * n))
    if keep > n:
        raise ArgumentError(f"keep={keep} but there are only {n} candidates: keep at most {n}, or pass a larger batch")
    return keep


def _update(
    optimizer: optax.GradientTransformation, state: TrainState, grads: PyTree, usable: Array
) -> tuple[PyTree, PyTree]:
    trained = floating(state.params)
    # A gradient that is not finite must not reach the moments, whose update is discarded below but still computed.
    safe = jax.tree.map(lambda g: jnp.where(usable, g, 0), floating(grads))
    updates, opt_state = optimizer.update(safe, state.opt_state, trained)
    new = optax.apply_updates(trained, updates)
    choose = functools.partial(jax.tree.map, lambda a, b: jnp.where(usable, a, b))
    return with_floating(state.params, choose(new, trained)), choose(opt_state, state.opt_state)


def _metrics(scored: Scored, selection: Any, taken: _Taken, usable: Array, rate: Array | None, n: int) -> StepMetrics:
    unknown = jnp.full(n, jnp.nan)
    by_leaf = not isinstance(selection, Selection)
    losses, scores = scored.signals.losses, _total_alignment(scored.signals) if by_leaf else selection.scores
    valid = scored.signals.valid if scored.signals.valid is not None else jnp.ones(n, bool)
    rejected = ~finite_rows(scored.signals, n)
    if scores is not None:
        rejected |= ~jnp.isfinite(scores)
    if not by_leaf:
        rejected |= jnp.zeros(n, bool).at[selection.indices].max((selection.weights > 0) & ~taken.update.used)
    return StepMetrics(
        loss=taken.update.loss,
        candidate_losses=unknown if losses is None else losses,
        validation_loss=scored.validation_loss,
        scores=unknown if scores is None else scores,
        selected=jax.tree.map(lambda x: x.indices, selection, is_leaf=lambda x: isinstance(x, Selection)),
        weights=taken.weights,
        shares=taken.shares,
        n_valid=valid.sum(),
        n_rejected=(valid & rejected).sum(dtype=jnp.int32),
        n_validation=scored.n_validation,
        n_validation_rejected=scored.n_validation_rejected,
        skipped=~usable,
        grad_norm=taken.update.norm,
        learning_rate=jnp.asarray(jnp.nan if rate is None else rate, jnp.float32),
        aux=taken.update.aux if scored.aux is None else scored.aux,
    )


def _total_alignment(signals: Signals) -> Array:
    """f32[n]: the alignment in all parameters together, what a layer-wise rule has in the place of scores."""
    parts = [x.reshape(-1, x.shape[-1]).sum(0) for x in jax.tree.leaves(signals.per_leaf_alignment)]
    return jnp.stack(parts).sum(0)
