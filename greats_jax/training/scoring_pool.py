"""What a rule ranks candidates by, without an update: for tables of scores and for looking before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from greats_jax.errors import ArgumentError
from greats_jax.selection import Rule, Selection, get
from greats_jax.training.signals import SignalOptions, choose, key_of, make_signals, rate_of
from greats_jax.training.state import TrainState

Array = jax.Array
PyTree = Any


class CandidateScores(NamedTuple):
    """What is known of n candidates.

    Attributes:
        scores: f32[n], what the rule ranks by; NaN where it has no opinion.
        losses: f32[n], nats; NaN if the rule needs none.
        valid: bool[n], False without labels.
    """

    scores: Array
    losses: Array
    valid: Array


def make_scorer(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    objective: str | Rule,
    options: SignalOptions,
) -> Callable[[TrainState, PyTree, PyTree, PyTree], tuple[TrainState, CandidateScores]]:
    """Build `score(state, frozen, candidates, validation) -> (state, scores)`, compiled once per shape.

    Nothing is trained: the state's parameters, optimizer and memory stay, its step counts the calls and its direction
    is that of the cached mode, so that `options` with `validation="cached"` and a large `refresh_every` score a whole
    pool with one validation gradient.

    Args:
        loss_fn: as for `make_selective_step`; not in two parts.
        optimizer: whose response to a gradient the rule may look at.
        objective: a rule, its name or an expression.
        options: how signals are computed.

    Raises:
        ArgumentError: settings that contradict each other; when called, a rule without a score per candidate.
    """
    rule = get(objective) if isinstance(objective, str) else objective
    find = make_signals(loss_fn, optimizer, rule, options)

    @jax.jit
    def score(
        state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree
    ) -> tuple[TrainState, CandidateScores]:
        n = len(jax.tree.leaves(candidates)[0])
        scored, signals = find(state, frozen, candidates, validation)
        selection = choose(rule, n, signals, rate_of(options.learning_rate, optimizer, state), key_of(state))
        if not isinstance(selection, Selection) or selection.scores is None:
            raise ArgumentError(f"the rule {rule.name!r} gives no score per candidate: there is nothing to list")
        losses = jnp.full(n, jnp.nan) if signals.losses is None else signals.losses
        after = state._replace(step=state.step + 1, direction=scored.direction)
        assert signals.valid is not None  # every scorer sets it
        return after, CandidateScores(selection.scores, losses, signals.valid)

    return score
