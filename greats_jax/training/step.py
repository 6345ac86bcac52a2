"""The selective training step: score, select, gather and update in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from greats_jax.errors import ArgumentError
from greats_jax.selection import Rule, Selection, Signals, get
from greats_jax.training.one_pass import one_pass_scorer
from greats_jax.training.scoring import EXACT, FORWARD_ONLY, Scored, Scorer, Scoring, ScoringTask, forward_scorer
from greats_jax.training.split_loss import SplitLoss
from greats_jax.training.state import TrainState, floating, learning_rate_in, with_floating
from greats_jax.training.two_pass import two_pass_scorer

Array = jax.Array
PyTree = Any


# Signals the step can compute; a rule that declares another is refused.
SERVED = frozenset({"losses", "alignment", "gram", "squared_norms", "valid", "memory"})


class StepMetrics(NamedTuple):
    """Results of one step, on the device; NaN where the rule did not ask for the quantity.

    Attributes:
        loss: f32[], weighted mean loss of the kept candidates.
        candidate_losses: f32[n].
        validation_loss: f32[], mean over the validation rows used in this step.
        scores: f32[n], what the rule ranked by.
        selected: i32[k], indices into the candidates in the order of picking.
        weights: f32[k], 0 for an empty slot.
        n_valid: i32[], candidates that have labels.
        n_rejected: i32[], valid candidates left out because their loss or score is not finite.
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
    selected: Array
    weights: Array
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
    keep: int = 4,
    validation: Literal["merged", "cached"] = "merged",
    refresh_every: int = 1,
    learning_rate: float | optax.Schedule | None = None,
    is_valid: Callable[[PyTree], Array] | None = None,
    has_aux: bool = False,
    row_weight: Callable[[PyTree], Array] | None = None,
    scoring: Scoring = EXACT,
) -> Callable[[TrainState, PyTree, PyTree, PyTree], tuple[TrainState, StepMetrics]]:
    """Build `step(state, frozen, candidates, validation) -> (state, metrics)`, compiled once per shape.

    Args:
        loss_fn: `loss_fn(params, frozen, example) -> scalar` (or `(scalar, aux)` with `has_aux`). A pair
            `(trunk, head)` or a `SplitLoss` is scored by the head's parameters, and the backward pass of rows that are
            not kept stops below the head.
        optimizer: applied to the weighted mean gradient of the kept candidates.
        objective: a registered rule or its name.
        keep: k, how many candidates are kept.
        validation: `merged`: the validation rows ride in the candidates' batch, one pass for both; `cached`: their mean
            gradient is computed every `refresh_every` steps and kept in the state.
        refresh_every: R of the cached mode.
        learning_rate: eta for rules that use it; None takes the rate that `optax.inject_hyperparams` applies.
        is_valid: `is_valid(example) -> bool`, False for a row that must not be picked (no labels).
        has_aux: whether the loss returns auxiliary outputs.
        row_weight: `row_weight(example) -> scalar`, the share of a kept example in the update (e.g. its number of label
            tokens); None weighs examples equally.
        scoring: one pass or two, micro-batches, which parameters score, projection; see `Scoring`.

    Returns:
        The step. It donates its state, never asks the host for a value and can be traced under `jit` or `scan`. A rule
        that needs only losses costs a forward pass of the candidates and a plain step on the kept ones.

    Raises:
        ArgumentError: settings that cannot work; when called, also `keep` larger than the batch, batches that cannot be
            merged, or a rule that needs eta where none is known.
    """
    rule = get(objective) if isinstance(objective, str) else objective
    _check(rule, keep, validation, refresh_every, scoring)
    if isinstance(loss_fn, tuple) and not isinstance(loss_fn, SplitLoss):
        loss_fn = SplitLoss(*loss_fn)
    scorer = _make_scorer(ScoringTask(loss_fn, rule.needs, has_aux, validation, refresh_every, is_valid, scoring))
    update = functools.partial(_update, optimizer)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree
    ) -> tuple[TrainState, StepMetrics]:
        n = len(jax.tree.leaves(candidates)[0])
        if keep > n:
            raise ArgumentError(
                f"keep={keep} but there are only {n} candidates: keep at most {n}, or pass a larger batch"
            )
        key = jax.random.fold_in(state.key, state.step)
        rate = _rate(learning_rate, optimizer, state)
        scored = scorer(state, frozen, candidates, validation)
        memory = rule.init() if state.memory is None and rule.init is not None else state.memory
        selection = _select(rule, keep, scored.signals._replace(memory=memory), rate, key)
        weights = selection.weights
        if row_weight is not None:
            weights = weights * jax.vmap(row_weight)(_rows(candidates, selection.indices)).astype(jnp.float32)
        total = weights.sum()
        shares = weights / jnp.where(total > 0, total, 1.0)
        loss, grads, aux = scored.kept(selection.indices, shares)
        norm = optax.tree.norm(floating(grads))
        usable = (total > 0) & scored.validation_ok & jnp.isfinite(norm) & jnp.isfinite(loss)
        params, opt_state = update(state, grads, usable)
        memory = memory if selection.memory is None else selection.memory
        new = TrainState(params, opt_state, state.step + 1, state.key, scored.direction, memory)
        return new, _metrics(scored, selection, loss, norm, usable, rate, n, aux)

    return step


def _make_scorer(task: ScoringTask) -> Scorer:
    """The cheapest way to what the rule needs."""
    if task.needs <= FORWARD_ONLY:
        return forward_scorer(task)
    return one_pass_scorer(task) if task.scoring.passes == "one" else two_pass_scorer(task)


def _check(rule: Rule, keep: int, validation: str, refresh_every: int, scoring: Scoring) -> None:
    if unserved := rule.needs - SERVED:
        raise ArgumentError(
            f"the rule {rule.name!r} needs {', '.join(sorted(unserved))}, but this step computes only "
            f"{', '.join(sorted(SERVED))}: compute the rest in your own loop and call the rule there"
        )
    if keep < 1:
        raise ArgumentError(f"keep={keep}: at least one candidate must be kept")
    if validation not in ("merged", "cached"):
        raise ArgumentError(
            f"validation={validation!r}: choose 'merged' (exact every step) or 'cached' (refreshed every R steps)"
        )
    if refresh_every < 1:
        raise ArgumentError(f"refresh_every={refresh_every}: the cached direction is refreshed every R >= 1 steps")
    if scoring.projects_alignment and validation == "cached":
        raise ArgumentError(
            "Projection(alignment='projected') needs the validation rows in the same step: use validation='merged', "
            "or alignment='exact' with the cached direction"
        )


def _rate(
    given: float | optax.Schedule | None, optimizer: optax.GradientTransformation, state: TrainState
) -> Array | None:
    """Eta of this step; for injected hyperparameters, the value that this step's update is going to apply."""
    if given is not None:
        return jnp.asarray(given(state.step) if callable(given) else given, jnp.float32)
    if learning_rate_in(state.opt_state) is None:
        return None
    trained = floating(state.params)
    # Only the schedule's part of this trial update survives compilation: nothing else of its result is used.
    _, after = optimizer.update(jax.tree.map(jnp.zeros_like, trained), state.opt_state, trained)
    found = learning_rate_in(after)
    return None if found is None else jnp.asarray(found, jnp.float32)


def _select(rule: Rule, keep: int, signals: Signals, rate: Array | None, key: Array) -> Selection:
    if rate is None and _uses_rate(rule, keep, signals, key):
        raise ArgumentError(
            f"the rule {rule.name!r} needs the learning rate: pass learning_rate= to make_selective_step, "
            "or build the optimizer with optax.inject_hyperparams"
        )
    return rule(signals, keep, learning_rate=jnp.zeros(()) if rate is None else rate, key=key)


def _uses_rate(rule: Rule, keep: int, signals: Signals, key: Array) -> bool:
    """Whether the rule's program reads eta."""

    def program(rate: Array) -> Any:
        return rule(signals, keep, learning_rate=rate, key=key)

    jaxpr = jax.make_jaxpr(program)(jnp.zeros(())).jaxpr
    return any(v is jaxpr.invars[0] for eqn in jaxpr.eqns for v in eqn.invars)


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


def _rows(batch: PyTree, indices: Array) -> PyTree:
    return jax.tree.map(lambda x: jnp.take(x, indices, axis=0), batch)


def _metrics(
    scored: Scored, selection: Selection, loss: Array, norm: Array, usable: Array, rate: Array | None, n: int, aux: Any
) -> StepMetrics:
    unknown = jnp.full(n, jnp.nan)
    losses, scores = scored.signals.losses, selection.scores
    valid = scored.signals.valid if scored.signals.valid is not None else jnp.ones(n, bool)
    finite = jnp.ones(n, bool)
    for value in (losses, scores):
        finite &= jnp.isfinite(value) if value is not None else True
    return StepMetrics(
        loss=loss,
        candidate_losses=unknown if losses is None else losses,
        validation_loss=scored.validation_loss,
        scores=unknown if scores is None else scores,
        selected=selection.indices,
        weights=selection.weights,
        n_valid=valid.sum(),
        n_rejected=(valid & ~finite).sum(),
        n_validation=scored.n_validation,
        n_validation_rejected=scored.n_validation_rejected,
        skipped=~usable,
        grad_norm=norm,
        learning_rate=jnp.asarray(jnp.nan if rate is None else rate, jnp.float32),
        aux=aux if scored.aux is None else scored.aux,
    )
