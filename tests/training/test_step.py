"""The selective step against a step written out with materialised gradients, and its behaviour at the edges."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from greats_jax.errors import ArgumentError
from greats_jax.ghost import reference
from greats_jax.selection import Rule, Signals, get, top_k
from greats_jax.training import TrainState, make_selective_step

RATE = 0.05
NAN = float("nan")


def loss_fn(params, frozen, example):
    x, y = example
    return jnp.mean((jnp.tanh(x @ params["first"]) @ frozen["middle"] @ params["second"] - y) ** 2)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {"first": normal(0, 4, 6), "second": normal(1, 6, 3), "count": jnp.arange(2)}
FROZEN = {"middle": normal(2, 6, 6)}
CANDIDATES = (normal(3, 8, 5, 4), normal(4, 8, 5, 3))
VALIDATION = (normal(5, 3, 5, 4), normal(6, 3, 5, 3))


def step_and_state(objective: str | Rule = "greats", optimizer=None, **options):
    optimizer = optimizer or optax.adamw(RATE)
    options = {"keep": 4, "learning_rate": RATE, **options}
    return make_selective_step(loss_fn, optimizer, objective, **options), TrainState.create(PARAMS, optimizer)


def floats(params):
    return {k: v for k, v in params.items() if k != "count"}


def spoil(batch, row):
    return (batch[0].at[row].set(NAN), batch[1])


def written_out(objective, keep=4, optimizer=None) -> tuple[Any, Any, Any]:
    """One step with gradients of the whole batch laid out, as a reader would write it."""
    optimizer = optimizer or optax.adamw(RATE)
    params = floats(PARAMS)
    grads, val = (reference.per_example_grads(loss_fn, params, FROZEN, rows) for rows in (CANDIDATES, VALIDATION))
    gram = reference.gram(grads)
    losses = jax.vmap(loss_fn, (None, None, 0))(params, FROZEN, CANDIDATES)
    signals = Signals(losses, reference.cross(grads, val).mean(1), gram, jnp.diagonal(gram))
    picks = get(objective)(signals, keep, learning_rate=RATE, key=jax.random.key(0)).indices
    mean = jax.tree.map(lambda g: g[picks].mean(0), grads)
    updates, _ = optimizer.update(mean, optimizer.init(params), params)
    return picks, optax.apply_updates(params, updates), losses[picks].mean()


@pytest.mark.parametrize("validation", ["merged", "cached"])
@pytest.mark.parametrize("objective", ["regular", "max_loss", "grad_norm", "greats_first_order", "greats"])
def test_a_step_selects_and_updates_as_written_out(objective, validation):
    step, state = step_and_state(objective, validation=validation)
    state, metrics = step(state, FROZEN, CANDIDATES, VALIDATION)
    picks, params, loss = written_out(objective)
    np.testing.assert_array_equal(metrics.selected, picks)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    for name, expected in params.items():
        np.testing.assert_allclose(state.params[name], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(state.params["count"], PARAMS["count"])
    assert int(state.step) == 1
    assert not metrics.skipped


def test_steps_never_need_the_host():
    """A step that asked the host for a value could not be traced inside a scan."""
    step, state = step_and_state(validation="cached", refresh_every=2)

    @jax.jit
    def several(state):
        return jax.lax.scan(lambda s, _: step(s, FROZEN, CANDIDATES, VALIDATION), state, None, length=4)

    scanned, metrics = several(state)
    _, state = step_and_state()
    for i in range(4):
        state, one = step(state, FROZEN, CANDIDATES, VALIDATION)
        np.testing.assert_array_equal(one.selected, metrics.selected[i])
    np.testing.assert_allclose(scanned.params["first"], state.params["first"], rtol=1e-5)


def test_the_structure_of_the_state_does_not_change():
    for objective in ("regular", "greats"):
        for mode in ("merged", "cached"):
            step, state = step_and_state(objective, validation=mode)
            before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
            after, _ = step(state, FROZEN, CANDIDATES, VALIDATION)
            assert before == jax.tree.map(lambda x: (x.shape, x.dtype), after)


def test_the_cached_direction_is_kept_between_refreshes():
    step, state = step_and_state("greats_first_order", validation="cached", refresh_every=2, learning_rate=None)
    directions = []
    for _ in range(3):
        state, metrics = step(state, FROZEN, CANDIDATES, VALIDATION)
        directions.append(np.asarray(state.direction["first"]))
    np.testing.assert_array_equal(directions[0], directions[1])
    assert not np.array_equal(directions[1], directions[2])
    assert int(metrics.n_validation) == 3


@pytest.mark.parametrize("objective", ["max_loss", "grad_norm", "greats_first_order", "greats"])
def test_a_candidate_that_is_not_finite_is_never_picked_and_is_counted(objective):
    step, state = step_and_state(objective, keep=8)
    state, metrics = step(state, FROZEN, spoil(CANDIDATES, 2), VALIDATION)
    assert 2 not in np.asarray(metrics.selected)[np.asarray(metrics.weights) > 0]
    assert int(metrics.n_rejected) == 1
    assert float(metrics.weights.sum()) == 7
    assert not metrics.skipped
    assert np.isfinite(state.params["first"]).all()


@pytest.mark.parametrize("validation", ["merged", "cached"])
def test_validation_rows_that_are_not_finite_are_dropped(validation):
    step, state = step_and_state(validation=validation)
    state, metrics = step(state, FROZEN, CANDIDATES, spoil(VALIDATION, 1))
    assert (int(metrics.n_validation), int(metrics.n_validation_rejected)) == (2, 1)
    assert np.isfinite(metrics.scores).all()
    assert not metrics.skipped


@pytest.mark.parametrize("validation", ["merged", "cached"])
def test_without_a_usable_validation_row_the_step_is_skipped(validation):
    step, state = step_and_state(validation=validation)
    rows = tuple(jnp.full_like(x, NAN) for x in VALIDATION)
    state, metrics = step(state, FROZEN, CANDIDATES, rows)
    assert metrics.skipped
    np.testing.assert_array_equal(state.params["first"], PARAMS["first"])
    state, metrics = step(state, FROZEN, CANDIDATES, VALIDATION)
    assert not metrics.skipped, "a later good validation batch mends the run"


def test_a_cached_direction_is_made_as_soon_as_it_is_missing():
    merged, state = step_and_state()
    cached, _ = step_and_state(validation="cached", refresh_every=5)
    state, _ = merged(state, FROZEN, CANDIDATES, VALIDATION)
    state, metrics = cached(state, FROZEN, CANDIDATES, VALIDATION)
    assert not metrics.skipped
    assert int(metrics.n_validation) == 3


def test_a_refresh_without_usable_rows_skips_the_step_and_keeps_the_direction():
    step, state = step_and_state(validation="cached", refresh_every=2)
    for _ in range(2):
        state, _ = step(state, FROZEN, CANDIDATES, VALIDATION)
    before = np.asarray(state.direction["first"])
    state, metrics = step(state, FROZEN, CANDIDATES, tuple(jnp.full_like(x, NAN) for x in VALIDATION))
    assert metrics.skipped
    np.testing.assert_array_equal(state.direction["first"], before)


def test_a_rule_with_memory_gets_it_back_at_the_next_step():
    def counting(signals, k, *, learning_rate, key):
        return top_k(signals.losses, k, jnp.isfinite(signals.losses))._replace(memory=signals.memory + 1)

    rule = Rule("counting", frozenset({"losses"}), counting, init=lambda: jnp.zeros((), jnp.int32))
    step, state = step_and_state(rule)
    for expected in (1, 2):
        state, _ = step(state, FROZEN, CANDIDATES, VALIDATION)
        assert int(state.memory) == expected


def test_a_rule_that_needs_what_the_step_cannot_compute_is_refused():
    rule = Rule("by_text", frozenset({"embeddings"}), lambda *a, **b: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="needs embeddings"):
        step_and_state(rule)


def test_rows_without_labels_are_never_picked():
    step, state = step_and_state("random_k", keep=8, is_valid=lambda z: z[0][0, 0] != 7.0)
    rows = (CANDIDATES[0].at[jnp.asarray([1, 5]), 0, 0].set(7.0), CANDIDATES[1])
    _, metrics = step(state, FROZEN, rows, VALIDATION)
    assert set(np.asarray(metrics.selected)[np.asarray(metrics.weights) > 0].tolist()) == {0, 2, 3, 4, 6, 7}
    assert int(metrics.n_valid) == 6


def test_when_no_candidate_is_valid_nothing_changes():
    step, state = step_and_state(is_valid=lambda z: False)
    state, metrics = step(state, FROZEN, CANDIDATES, VALIDATION)
    assert metrics.skipped
    assert int(metrics.n_valid) == 0
    np.testing.assert_array_equal(state.params["second"], PARAMS["second"])
    assert int(state.step) == 1


def test_row_weights_share_the_update():
    plain, _ = step_and_state("regular", optax.sgd(1.0), keep=2)
    heavy, _ = step_and_state(
        "regular",
        optax.sgd(1.0),
        keep=2,
        row_weight=lambda z: jnp.where(z[0][0, 0] == CANDIDATES[0][0, 0, 0], 1.0, 0.0),
    )
    single, _ = step_and_state("regular", optax.sgd(1.0), keep=1)
    results = [
        f(TrainState.create(PARAMS, optax.sgd(1.0)), FROZEN, CANDIDATES, VALIDATION)[0].params["first"]
        for f in (plain, heavy, single)
    ]
    np.testing.assert_allclose(results[1], results[2], rtol=1e-5)
    assert not np.allclose(results[0], results[2])


def test_eta_is_read_from_injected_hyperparameters_as_the_update_applies_it():
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=schedule)
    step, state = step_and_state(optimizer=optimizer, learning_rate=None)
    for i in range(3):
        state, metrics = step(state, FROZEN, CANDIDATES, VALIDATION)
        np.testing.assert_allclose(metrics.learning_rate, schedule(i), rtol=1e-6)


def test_auxiliary_outputs_are_those_of_the_candidates():
    step = make_selective_step(
        lambda p, f, z: (loss_fn(p, f, z), z[1].sum()), optax.sgd(RATE), keep=2, learning_rate=RATE, has_aux=True
    )
    _, metrics = step(TrainState.create(PARAMS, optax.sgd(RATE)), FROZEN, CANDIDATES, VALIDATION)
    np.testing.assert_allclose(metrics.aux, CANDIDATES[1].sum((1, 2)), rtol=1e-5)


def test_creating_a_state_copies_the_parameters():
    params = {"first": jnp.ones((4, 6)), "second": jnp.ones((6, 3)), "count": jnp.arange(2)}
    step = make_selective_step(loss_fn, optax.sgd(RATE), "regular", keep=8)
    step(TrainState.create(params, optax.sgd(RATE)), FROZEN, CANDIDATES, VALIDATION)
    assert float(params["first"].sum()) == 24, "the step donates its state, not the caller's arrays"


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match="keep=0"):
        step_and_state(keep=0)
    with pytest.raises(ArgumentError, match="'merged'"):
        step_and_state(validation="both")
    with pytest.raises(ArgumentError, match="refresh_every"):
        step_and_state(refresh_every=0)
    step, state = step_and_state(keep=9)
    with pytest.raises(ArgumentError, match="only 8 candidates"):
        step(state, FROZEN, CANDIDATES, VALIDATION)
    step, state = step_and_state()
    with pytest.raises(ArgumentError, match=r"float32\[8, 5, 4\].*float32\[3, 4, 4\]"):
        step(state, FROZEN, CANDIDATES, (VALIDATION[0][:, :4], VALIDATION[1]))
    step, state = step_and_state(learning_rate=None)
    with pytest.raises(ArgumentError, match="needs the learning rate"):
        step(state, FROZEN, CANDIDATES, VALIDATION)


def test_rows_are_run_one_by_one_only_when_they_must_be():
    """What a loop does not need its carry for, the compiler moves out of it: then every step would run rows twice."""

    def layered(params, frozen, x):
        return jnp.mean(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)[0] ** 2)

    optimizer = optax.sgd(0.1)
    step = make_selective_step(layered, optimizer, "regular", 8)
    state = TrainState.create(normal(0, 12, 16, 16), optimizer)
    program = step.lower(state, {}, normal(1, 8, 5, 16), None).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    assert entry.count(" while(") == 3, "layers forward, layers backward, and the loop that mends"
