"""From a rule to the signals it needs: what each costs is paid only when the rule asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from greats_jax.errors import ArgumentError
from greats_jax.ghost import Spread
from greats_jax.selection import Rule, Signals
from greats_jax.training.one_pass import one_pass_scorer
from greats_jax.training.preconditioning import precondition
from greats_jax.training.scoring import (
    EXACT,
    GRADIENTS,
    Scored,
    Scorer,
    Scoring,
    ScoringTask,
    forward_scorer,
)
from greats_jax.training.split_loss import SplitLoss
from greats_jax.training.state import TrainState, floating, learning_rate_in
from greats_jax.training.targets import Targets
from greats_jax.training.two_pass import two_pass_scorer

Array = jax.Array
PyTree = Any
RowSignal = Callable[[PyTree, PyTree], Array]

# Signals that only the caller can know, from the frozen pytree and a row.
FROM_ROWS = ("reference_losses", "embeddings", "sources")


@dataclass(frozen=True)
class SignalOptions:
    """How signals are computed, beside the loss and the rule; see `make_selective_step` for each.

    Attributes:
        validation: `merged` or `cached`.
        refresh_every: R of the cached mode.
        learning_rate: eta, or None.
        is_valid: test of a row, or None.
        has_aux: whether the loss returns auxiliary outputs.
        scoring: one pass or two, micro-batches, which parameters score, projection.
        row_signals: signals from the caller's rows.
        targets: several target tasks.
        preconditioner: `preconditioner(opt_state, params, direction)`, or None for the optimizer's own response.
        spread: how rows are spread over a mesh, or None.
        groups: runs of candidates that are chosen from apart from each other.
    """

    validation: Literal["merged", "cached"] = "merged"
    refresh_every: int = 1
    learning_rate: float | optax.Schedule | None = None
    is_valid: Callable[[PyTree], Array] | None = None
    has_aux: bool = False
    scoring: Scoring = EXACT
    row_signals: Mapping[str, RowSignal] = field(default_factory=dict)
    targets: Targets | None = None
    preconditioner: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
    spread: Spread | None = None
    groups: int = 1


def make_signals(
    loss_fn: Callable[..., Any], optimizer: optax.GradientTransformation, rule: Rule, options: SignalOptions
) -> Callable[[TrainState, PyTree, PyTree, PyTree], tuple[Scored, Signals]]:
    """Build `find(state, frozen, candidates, validation)`: the rule's signals, and what else scoring gave.

    Raises:
        ArgumentError: settings that contradict each other or the rule.
    """
    _check(loss_fn, rule, options)
    respond = options.preconditioner or (lambda state, params, v: precondition(optimizer, state, params, v))
    task = ScoringTask(
        loss_fn,
        rule.needs,
        options.has_aux,
        options.validation,
        options.refresh_every,
        options.is_valid,
        options.scoring,
        options.targets,
        lambda state, direction: respond(state.opt_state, floating(state.params), direction),
        options.spread,
        options.groups,
    )
    scorer = _make_scorer(task)

    def find(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> tuple[Scored, Signals]:
        scored = scorer(state, frozen, candidates, validation)
        given = {name: _of_rows(options, name, frozen, candidates) for name in FROM_ROWS if name in rule.needs}
        if "validation_embeddings" in rule.needs:
            given["validation_embeddings"] = _of_rows(options, "embeddings", frozen, validation)
        memory = _memory(rule, state)
        signals = scored.signals._replace(
            memory=memory,
            logit_summaries=scored.aux if "logit_summaries" in rule.needs else None,
            optimizer=state.opt_state if "optimizer" in rule.needs else None,
            **given,
        )
        return scored, signals

    return find


def choose(rule: Rule, keep: int, signals: Signals, rate: Array | None, key: Array) -> Any:
    """What the rule picks.

    Raises:
        ArgumentError: the rule reads eta and there is none.
    """
    if rate is None and _uses_rate(rule, keep, signals, key):
        raise ArgumentError(
            f"the rule {rule.name!r} needs the learning rate: pass learning_rate= to make_selective_step, "
            "or build the optimizer with optax.inject_hyperparams"
        )
    return rule(signals, keep, learning_rate=jnp.zeros(()) if rate is None else rate, key=key)


def rate_of(
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


def key_of(state: TrainState) -> Array:
    """The key that the rule draws with in this step."""
    return jax.random.fold_in(state.key, state.step)


def _make_scorer(task: ScoringTask) -> Scorer:
    """The cheapest way to what the rule needs."""
    if not task.needs & GRADIENTS:
        return forward_scorer(task)
    return one_pass_scorer(task) if task.scoring.passes == "one" else two_pass_scorer(task)


def _of_rows(options: SignalOptions, name: str, frozen: PyTree, rows: PyTree) -> Array:
    return jax.vmap(options.row_signals[name], in_axes=(None, 0))(frozen, rows)


def _memory(rule: Rule, state: TrainState) -> Any:
    """What the rule remembers: what the state holds, or its first memory."""
    if rule.init is None:
        return state.memory
    if state.memory is None:
        return rule.init()
    expected, found = (jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (jax.eval_shape(rule.init), state.memory))
    if expected != found:
        raise ArgumentError(
            f"the state holds the memory of another rule than {rule.name!r}: create the state with memory=None or with "
            "what init() of this rule gives"
        )
    return state.memory


def _uses_rate(rule: Rule, keep: int, signals: Signals, key: Array) -> bool:
    """Whether the rule's program reads eta."""

    def program(rate: Array) -> Any:
        return rule(signals, keep, learning_rate=rate, key=key)

    jaxpr = jax.make_jaxpr(program)(jnp.zeros(())).jaxpr
    return any(v is jaxpr.invars[0] for eqn in jaxpr.eqns for v in eqn.invars)


def _check(loss_fn: Callable[..., Any], rule: Rule, options: SignalOptions) -> None:
    if unknown := set(options.row_signals) - set(FROM_ROWS):
        raise ArgumentError(f"row_signals has {sorted(unknown)}; it may hold {', '.join(FROM_ROWS)}")
    wanted = {"embeddings" if name == "validation_embeddings" else name for name in rule.needs}
    if missing := [name for name in FROM_ROWS if name in wanted and name not in options.row_signals]:
        raise ArgumentError(
            f"the rule {rule.name!r} needs {' and '.join(missing)}, which only you can know: pass "
            f"row_signals={{{missing[0]!r}: lambda frozen, row: ...}} to make_selective_step"
        )
    if "logit_summaries" in rule.needs and not options.has_aux:
        raise ArgumentError(
            f"the rule {rule.name!r} needs logit_summaries, the auxiliary output of the loss: "
            "let the loss return (loss, summaries) and pass has_aux=True"
        )
    if options.validation not in ("merged", "cached"):
        raise ArgumentError(
            f"validation={options.validation!r}: choose 'merged' (exact every step) or 'cached' (refreshed every R "
            "steps)"
        )
    if options.refresh_every < 1:
        raise ArgumentError(
            f"refresh_every={options.refresh_every}: the cached direction is refreshed every R >= 1 steps"
        )
    _check_scoring(loss_fn, rule, options)


def _check_scoring(loss_fn: Callable[..., Any], rule: Rule, options: SignalOptions) -> None:
    scoring = options.scoring
    if options.groups > 1 and scoring.micro_batches > 1:
        raise ArgumentError(
            f"groups={options.groups} and {scoring.micro_batches} micro-batches would both cut the candidates: "
            "use one of them"
        )
    if scoring.projects_alignment and options.validation == "cached":
        raise ArgumentError(
            "Projection(alignment='projected') needs the validation rows in the same step: use validation='merged', "
            "or alignment='exact' with the cached direction"
        )
    if "per_leaf_alignment" in rule.needs and (scoring != EXACT or isinstance(loss_fn, SplitLoss)):
        raise ArgumentError(
            f"the rule {rule.name!r} chooses for every parameter from its exact alignment: it needs the scoring "
            "of one pass over all parameters, with the loss in one piece and without projection"
        )
    if options.targets is not None and options.targets.combine == "max":
        formed = sorted(rule.needs & {"preconditioned_alignment", "per_leaf_alignment"})
        if formed or options.validation == "cached" or scoring.micro_batches > 1:
            raise ArgumentError(
                "Targets(combine='max') compares each candidate with every validation row, but "
                + (
                    f"the rule {rule.name!r} takes {formed[0]} with one direction"
                    if formed
                    else "a cached direction or micro-batches keep only one direction"
                )
                + ": use combine='mean' or 'worst'"
            )
