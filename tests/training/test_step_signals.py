"""Every rule through the step, against gradients laid out and AdamW's response by its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rows_and_gradients import (
    CANDIDATES,
    FROZEN,
    KEEP,
    NAN,
    OPTIMIZER,
    PARAMS,
    RATE,
    RULES,
    UDS,
    VALIDATION,
    M,
    N,
    dense,
    laid_out,
    loss_fn,
    new_state,
    rows,
    run,
    selected_by_hand,
    snapshot,
    spoil_gradients,
    spoil_losses,
    step_of,
    summarised,
    updated_by_hand,
)

from greats_jax.errors import ArgumentError
from greats_jax.selection import Rule, Selection, get, top_k
from greats_jax.training import Projection, Scoring, TrainState, make_selective_step

MIXED = "0.5*normalised(greats) + 0.5*normalised(greats_adam)"
WRITTEN_OUT = [
    ("greats_adam", "merged"), ("greats_adam", "micro-batches"), ("opus", "merged"), ("cosine", "merged"),
    ("partition_sel", "merged"), ("rho_loss", "merged"), ("sbert", "merged"), (UDS, "merged"), (MIXED, "merged"),
    ("soft(quota(diverse(max_loss)))", "merged"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("greats_adam", "cached"), ("cosine", "micro-batches"), ("partition_sel", "two passes, cached"),
            (f"{UDS} + 0.1*greats", "cached"), (MIXED, "two passes"),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "mode"), WRITTEN_OUT)
def test_steps_pick_and_update_as_written_out(rule, mode):
    step, state = step_of(rule, mode), new_state(rule)
    for i in range(3):
        batch, validation, before = rows(10 + i, N), rows(20 + i, M), snapshot(state)
        signals = laid_out(before, batch, validation)
        if mode == "micro-batches":
            part = np.arange(N) // (N // 2)
            signals = signals._replace(gram=np.where(part[:, None] == part, signals.gram, 0.0))
        expected = selected_by_hand(rule, before, signals)
        state, metrics = step(state, FROZEN, batch, validation)
        np.testing.assert_array_equal(metrics.selected, expected.indices)
        np.testing.assert_allclose(metrics.weights, expected.weights, rtol=2e-3, atol=1e-4)
        scale = np.abs(expected.scores).max()
        np.testing.assert_allclose(metrics.scores, expected.scores, rtol=1e-3, atol=1e-3 * scale)
        shares = dense(Selection(expected.indices, metrics.weights))
        np.testing.assert_allclose(metrics.shares, shares, atol=1e-6)
        for name, value in updated_by_hand(before, batch, shares).items():
            np.testing.assert_allclose(state.params[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(state.params["count"], PARAMS["count"])
        assert int(metrics.n_rejected) == 0
        assert not metrics.skipped
        if expected.memory is not None:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), state.memory, expected.memory
            )


@pytest.mark.parametrize(
    ("mode", "weighted"), [("merged", False), ("cached", True)], ids=["rows alike", "rows weighed, cached"]
)
def test_every_parameter_and_layer_learns_from_its_own_picks(mode, weighted):
    step, state = step_of("layer_wise", mode), new_state()
    if weighted:
        step = make_selective_step(
            loss_fn, OPTIMIZER, "layer_wise", KEEP, learning_rate=RATE, row_weight=lambda row: row["weight"],
            validation="cached" if mode == "cached" else "merged",
        )  # fmt: skip
    for i in range(2):
        batch, validation, before = rows(10 + i, N), rows(20 + i, M), snapshot(state)
        expected = selected_by_hand("layer_wise", before, laid_out(before, batch, validation))
        state, metrics = step(state, FROZEN, batch, validation)
        shares = {}
        for name in ("first", "layers", "head"):
            np.testing.assert_array_equal(metrics.selected[name], expected[name].indices)
            shares[name] = dense(expected[name], np.asarray(batch["weight"]) if weighted else 1.0)
        picked = [
            set(row) for leaf in ("first", "layers", "head") for row in np.atleast_2d(metrics.selected[leaf]).tolist()
        ]
        assert any(one != picked[0] for one in picked), "were all alike this would test nothing"
        for name, value in updated_by_hand(before, batch, shares).items():
            np.testing.assert_allclose(state.params[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(
            metrics.shares, np.concatenate([np.atleast_2d(x) for x in shares.values()]).mean(0), rtol=1e-5
        )


@pytest.mark.parametrize("passes", ["one", "two"])
def test_a_projection_ranks_by_estimates_of_the_preconditioned_alignment(passes):
    """Exactly in two passes, where the direction has been formed anyway."""
    scoring = Scoring(passes, projection=Projection(512, "projected"))
    step = make_selective_step(loss_fn, OPTIMIZER, "opus", KEEP, learning_rate=RATE, scoring=scoring)
    state, found, exact = new_state(), [], []
    for i in range(3):
        batch, validation, before = rows(10 + i, N), rows(20 + i, M), snapshot(state)
        exact.append(laid_out(before, batch, validation).preconditioned_alignment)
        state, metrics = step(state, FROZEN, batch, validation)
        found.append(metrics.scores)
    assert np.corrcoef(np.ravel(found), np.ravel(exact))[0, 1] > 0.9
    differ = not np.allclose(found, exact, rtol=1e-2, atol=1e-3 * np.abs(exact).max())
    assert differ == (passes == "one")


def test_target_only_is_a_plain_step_on_all_validation_rows():
    plain = make_selective_step(loss_fn, OPTIMIZER, "regular", M)
    state, metrics = run("target_only", CANDIDATES)
    expected, facts = plain(new_state(), FROZEN, VALIDATION, None)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    np.testing.assert_array_equal(metrics.selected, np.arange(M))
    np.testing.assert_array_equal(metrics.loss, facts.loss)


@pytest.mark.parametrize(("keep", "slots"), [(0.5, 4), (0.3, 2), (0.01, 1), (1.0, 8)])
def test_a_fraction_of_the_candidates_is_kept(keep, slots):
    step = make_selective_step(loss_fn, OPTIMIZER, "greats", keep, learning_rate=RATE)
    shapes = jax.eval_shape(step, new_state(), FROZEN, CANDIDATES, VALIDATION)[1]
    assert shapes.selected.shape == shapes.weights.shape == (slots,)


@pytest.mark.parametrize("keep", [0.0, 1.5, -0.5, 0, NAN])
def test_a_fraction_that_is_none_is_refused(keep):
    with pytest.raises(ArgumentError, match=f"keep={keep}"):
        make_selective_step(loss_fn, OPTIMIZER, keep=keep)


def test_soft_weights_of_all_candidates_are_those_of_the_update():
    state, metrics = run("soft(greats_first_order, temperature=0.5)", CANDIDATES, keep=1.0)
    before = new_state()
    alignment = np.asarray(laid_out(before, CANDIDATES, VALIDATION).alignment, np.float64)
    levels = np.exp((alignment - alignment.mean()) / alignment.std() / 0.5)
    np.testing.assert_allclose(metrics.shares, levels / levels.sum(), rtol=1e-3)
    for name, value in updated_by_hand(before, CANDIDATES, levels / levels.sum()).items():
        np.testing.assert_allclose(state.params[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


# ---- memory ----------------------------------------------------------------------------------------------------------


def pushed(state: TrainState) -> int:
    assert state.memory is not None
    return int(state.memory["pushed"])


def test_a_memory_given_at_the_start_lets_steps_run_inside_a_scan():
    step = step_of(UDS)
    batches = jax.tree.map(lambda *x: jnp.stack(x), *(rows(10 + i, N) for i in range(3)))
    scanned, metrics = jax.jit(
        lambda state: jax.lax.scan(lambda s, batch: step(s, FROZEN, batch, VALIDATION), state, batches)
    )(new_state(UDS))
    state = TrainState.create(PARAMS, OPTIMIZER)
    assert state.memory is None
    for i in range(3):
        state, one = step(state, FROZEN, rows(10 + i, N), VALIDATION)
        np.testing.assert_array_equal(one.selected, metrics.selected[i])
    assert pushed(scanned) == pushed(state) == 3 * KEEP
    queues = (jax.tree.leaves(x.memory) for x in (scanned, state))
    for one, other in zip(*queues, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_with_a_memory_the_structure_of_the_state_never_changes():
    for rule in (UDS, f"{UDS} + 0.1*greats"):
        before = jax.tree.map(lambda x: (x.shape, x.dtype), new_state(rule))
        after = jax.eval_shape(step_of(rule), new_state(rule), FROZEN, CANDIDATES, VALIDATION)[0]
        assert before == jax.tree.map(lambda x: (x.shape, x.dtype), after)


def test_a_memory_is_copied_since_the_step_donates_it():
    memory = jax.tree.map(jnp.asarray, get(UDS).init())  # type: ignore[misc]
    state = TrainState.create(PARAMS, OPTIMIZER, memory=memory)
    step_of(UDS)(state, FROZEN, CANDIDATES, VALIDATION)
    assert int(memory["pushed"]) == 0


def test_a_rule_without_memory_leaves_that_of_another_in_the_state():
    state, _ = run(UDS, CANDIDATES)
    state, _ = step_of("max_loss")(state, FROZEN, CANDIDATES, VALIDATION)
    assert pushed(state) == KEEP


def test_the_memory_of_another_rule_is_refused():
    with pytest.raises(ArgumentError, match="memory of another rule than 'uds"):
        step_of(UDS)(new_state("uds(size=3, width=4)"), FROZEN, CANDIDATES, VALIDATION)


# ---- rows that are not finite ----------------------------------------------------------------------------------------

SPOILT = {
    "one loss": (spoil_losses(CANDIDATES, 2), {2}),
    "one gradient": (spoil_gradients(CANDIDATES, 5), {5}),
    "several": (spoil_losses(spoil_gradients(CANDIDATES, 0, 4), 0, 3), {0, 3, 4}),
}
UNSEEN = {"regular", "random_k", "max_loss", "rho_loss", "sbert", UDS}  # rules that look at no gradient
EVERY_MODE = [(rule, "merged") for rule in RULES] + [
    ("max_loss", "micro-batches"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("greats", "two passes"), ("opus", "micro-batches"), ("grad_norm", "two passes"),
            ("0.5*greats + max_loss", "merged"), ("soft(diverse(max_loss))", "merged"),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "mode"), EVERY_MODE)
def test_candidates_that_are_not_finite_are_left_out_and_counted_and_the_step_goes_on(rule, mode):
    """All are kept, so that each that is left out is missed."""
    for what, (batch, broken) in SPOILT.items():
        state, metrics = run(rule, batch, mode, keep=N)
        shares, good = np.asarray(metrics.shares), sorted(set(range(N)) - broken)
        assert not metrics.skipped, what
        assert not shares[sorted(broken)].any(), what
        assert int(metrics.n_rejected) == len(broken), what
        assert np.isfinite(metrics.loss), what
        assert np.isfinite(metrics.grad_norm), what
        if rule != "partition_sel":  # which keeps only what gains
            assert (shares[good] > 0).all(), what
        if rule != "layer_wise":
            for name, value in updated_by_hand(new_state(), _only(batch, good), shares).items():
                np.testing.assert_allclose(state.params[name], value, rtol=1e-3, atol=1e-4, err_msg=f"{what} {name}")
        else:
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params)), what
    for batch in (spoil_losses(CANDIDATES, *range(N)), spoil_gradients(CANDIDATES, *range(N))):
        state, metrics = run(rule, batch, mode, keep=N)
        assert metrics.skipped
        assert int(metrics.n_rejected) == N
        jax.tree.map(np.testing.assert_array_equal, state.params, PARAMS)


def _only(batch, good):
    """The batch with sound rows in the place of the others, which have no share."""
    keep = np.isin(np.arange(N), good)
    return jax.tree.map(lambda x, y: np.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, y), batch, CANDIDATES)


def test_a_kept_candidate_without_a_gradient_is_known_to_rules_without_gradients_only_when_kept():
    """What is never computed is not counted."""
    _, metrics = run("max_loss", spoil_gradients(CANDIDATES, *range(N)))
    assert int(metrics.n_rejected) == KEEP
    worst = int(np.argmin(jax.vmap(loss_fn, (None, None, 0))(PARAMS, FROZEN, CANDIDATES)))
    _, metrics = run("max_loss", spoil_gradients(CANDIDATES, worst))
    assert int(metrics.n_rejected) == 0


def test_rejected_candidates_are_counted_once_and_only_with_labels():
    def everything(signals, k, *, learning_rate, key):
        return top_k(signals.losses, k, jnp.ones(N, bool))  # picks what it should not

    rule = Rule("careless", frozenset({"losses"}), everything)
    step = make_selective_step(loss_fn, OPTIMIZER, rule, N, is_valid=lambda row: row["x"][0, 0] != 7.0)
    batch = spoil_losses(CANDIDATES, 1, 2)
    batch = {**batch, "x": batch["x"].at[2, 0, 0].set(7.0)}
    _, metrics = step(new_state(), FROZEN, batch, VALIDATION)
    assert (int(metrics.n_valid), int(metrics.n_rejected)) == (N - 1, 1)


@pytest.mark.parametrize(
    ("rule", "mode"), [("greats_adam", "merged"), ("greats_adam", "cached"), ("layer_wise", "merged")]
)
def test_validation_rows_without_a_finite_gradient_are_left_out(rule, mode):
    spoilt = spoil_gradients(VALIDATION, 1)
    _, metrics = step_of(rule, mode)(new_state(), FROZEN, CANDIDATES, spoilt)
    assert (int(metrics.n_validation), int(metrics.n_validation_rejected)) == (M - 1, 1)
    rest = jax.tree.map(lambda x: x[jnp.asarray([0, 2])], VALIDATION)
    scores = laid_out(new_state(), CANDIDATES, rest)
    expected = scores.preconditioned_alignment if rule == "greats_adam" else scores.alignment
    np.testing.assert_allclose(metrics.scores, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert not metrics.skipped


def test_auxiliary_outputs_and_a_memory_stand_beside_a_rejected_row():
    state, metrics = run(UDS, spoil_losses(CANDIDATES, 2))
    assert 2 not in np.asarray(metrics.selected)
    assert np.isfinite(state.memory["rows"]).all()
    expected = jax.vmap(summarised, (None, None, 0))(PARAMS, FROZEN, CANDIDATES)[1]
    np.testing.assert_allclose(metrics.aux["projection"], expected["projection"], rtol=1e-4, atol=1e-5)


def test_an_accumulating_optimizer_can_be_told_how_it_responds():
    optimizer = optax.MultiSteps(OPTIMIZER, 4).gradient_transformation()
    seen = []

    def respond(opt_state, params, direction):
        seen.append(jax.tree.structure(opt_state))
        return jax.tree.map(lambda x: -x, direction)

    step = make_selective_step(loss_fn, optimizer, "greats_adam", KEEP, preconditioner=respond)
    state = TrainState.create(PARAMS, optimizer)
    structure = jax.tree.structure(state.opt_state)
    _, metrics = step(state, FROZEN, CANDIDATES, VALIDATION)
    alignment = laid_out(new_state(), CANDIDATES, VALIDATION).alignment
    np.testing.assert_allclose(metrics.scores, -alignment, rtol=1e-3, atol=1e-4)
    assert seen[0] == structure
