"""Scores without an update, against those that the step ranks by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows_and_gradients import (
    CANDIDATES,
    FROZEN,
    NAN,
    OPTIMIZER,
    PARAMS,
    RATE,
    ROW_SIGNALS,
    UDS,
    VALIDATION,
    N,
    laid_out,
    loss_fn,
    new_state,
    rows,
    selected_by_hand,
    snapshot,
    spoil_gradients,
    spoil_losses,
    summarised,
)

from greats_jax.errors import ArgumentError
from greats_jax.training import Scoring
from greats_jax.training.scoring_pool import make_scorer
from greats_jax.training.signals import SignalOptions


def scorer(rule: str, loss=loss_fn, **options):
    return make_scorer(loss, OPTIMIZER, rule, SignalOptions(learning_rate=RATE, **options))


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("greats", {}),
        ("greats_adam", {"validation": "cached", "scoring": Scoring("two")}),
        ("rho_loss", {"row_signals": {"reference_losses": ROW_SIGNALS["reference_losses"]}}),
    ],
)
def test_scores_are_what_the_rule_ranks_by_and_nothing_is_trained(rule, options):
    score, state = scorer(rule, **options), new_state()
    expected = selected_by_hand(rule, snapshot(state), laid_out(state, CANDIDATES, VALIDATION), N)
    after, found = score(state, FROZEN, CANDIDATES, VALIDATION)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-4 * np.abs(expected.scores).max())
    losses = jax.vmap(loss_fn, (None, None, 0))(PARAMS, FROZEN, CANDIDATES)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after.params, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, new_state().opt_state)
    assert int(after.step) == 1


def test_the_validation_gradient_of_the_first_call_serves_a_whole_pool():
    score, state = scorer("greats_first_order", validation="cached", refresh_every=100), new_state()
    state, _ = score(state, FROZEN, CANDIDATES, VALIDATION)
    nothing = jax.tree.map(jnp.zeros_like, VALIDATION)
    _, found = score(state, FROZEN, rows(30, N), nothing)
    exact = laid_out(new_state(), rows(30, N), VALIDATION).alignment
    np.testing.assert_allclose(found.scores, exact, rtol=1e-3, atol=1e-4)


def test_a_memory_stays_as_it_is():
    state = new_state(UDS)
    after, found = scorer(UDS, summarised, has_aux=True)(state, FROZEN, CANDIDATES, VALIDATION)
    jax.tree.map(np.testing.assert_array_equal, after.memory, new_state(UDS).memory)
    assert np.isfinite(found.scores).all()


def test_what_is_not_finite_shows_and_spoils_no_other_score():
    score = scorer("greats_first_order", is_valid=lambda row: row["x"][0, 0] != 7.0)
    _, sound = score(new_state(), FROZEN, CANDIDATES, VALIDATION)
    broken = spoil_losses(spoil_gradients(CANDIDATES, 1), 4)
    broken = {**broken, "x": broken["x"].at[6, 0, 0].set(7.0)}
    _, found = score(new_state(), FROZEN, broken, VALIDATION)
    assert np.flatnonzero(~np.isfinite(found.scores)).tolist() == [1, 4]
    assert np.flatnonzero(~np.isfinite(found.losses)).tolist() == [4]
    assert np.flatnonzero(~np.asarray(found.valid)).tolist() == [6]
    rest = np.asarray([0, 2, 3, 5, 7])
    np.testing.assert_allclose(found.scores[rest], sound.scores[rest], rtol=1e-5)


def test_losses_are_unknown_to_a_rule_that_needs_none():
    signals = {"embeddings": ROW_SIGNALS["embeddings"]}
    _, found = scorer("sbert", row_signals=signals)(new_state(), FROZEN, CANDIDATES, VALIDATION)
    np.testing.assert_array_equal(found.losses, np.full(N, NAN))
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize("rule", ["random_k", "layer_wise"])
def test_a_rule_without_scores_has_nothing_to_list(rule):
    with pytest.raises(ArgumentError, match=f"'{rule}' gives no score per candidate"):
        scorer(rule)(new_state(), FROZEN, CANDIDATES, VALIDATION)
