"""Every way to compute the signals: the same numbers where exact, the promised ones elsewhere."""

import dataclasses

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from greats_jax.errors import ArgumentError
from greats_jax.ghost import reference
from greats_jax.selection import Rule, Selection, get
from greats_jax.training import Projection, Scoring, SplitLoss, TrainState, make_selective_step
from greats_jax.training.split_loss import resumable

RATE = 0.05
N, M = 8, 3
NEEDS = frozenset({"losses", "alignment", "gram", "squared_norms"})


def normal(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def trunk(params, frozen, example):
    """An embedding and two scanned layers."""
    h = params["table"][example["ids"]] @ frozen["mix"]
    return jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), h, params["lower"])[0]


def head(params, frozen, h, example):
    """Two scanned layers, and the table again."""
    h = jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), h, params["upper"])[0]
    logits = h @ params["table"].T
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), example["ids"][:, None], 1).mean() * example["weight"]


def loss_fn(params, frozen, example):
    return head(params, frozen, trunk(params, frozen, example), example)


def parts(params):
    """The table is in both parts, `count` in the upper one."""
    return (
        {"table": params["table"], "lower": params["lower"]},
        {"table": params["table"], "upper": params["upper"], "count": params["count"]},
    )


SPLIT = SplitLoss(trunk, head, parts)
PARAMS = {
    "table": normal(0, 7, 4),
    "lower": normal(1, 2, 4, 4, scale=0.5),
    "upper": normal(2, 2, 4, 4, scale=0.5),
    "count": jnp.arange(2),
}
FROZEN = {"mix": normal(3, 4, 4)}


def rows(seed, count):
    rng = np.random.default_rng(seed)
    return {
        "ids": jnp.asarray(rng.integers(0, 7, (count, 5)), jnp.int32),
        "weight": jnp.asarray(rng.uniform(0.5, 2, count), jnp.float32),
    }


CANDIDATES, VALIDATION = rows(4, N), rows(5, M)


def remember(signals, k, *, learning_rate=None, key=None):
    """GREATS, which leaves its signals in the memory."""
    found = get("greats")(signals, k, learning_rate=learning_rate, key=key)
    return Selection(
        found.indices, found.weights, found.scores, {name: getattr(signals, name) for name in sorted(NEEDS)}
    )


PROBE = Rule("probe", NEEDS, remember)


def run(loss=loss_fn, rule: Rule | str = PROBE, candidates=CANDIDATES, **options):
    optimizer = optax.sgd(RATE)
    step = make_selective_step(loss, optimizer, rule, keep=4, learning_rate=RATE, **options)
    return step(TrainState.create(PARAMS, optimizer), FROZEN, candidates, VALIDATION)


def laid_out(only=None):
    """Signals by gradients written out, from all parameters or one of them."""
    grads, val = (
        reference.per_example_grads(
            lambda p, f, z: loss_fn({**PARAMS, **p}, f, z),
            {k: v for k, v in PARAMS.items() if k != "count" and only in (None, k)},
            FROZEN,
            batch,
        )
        for batch in (CANDIDATES, VALIDATION)
    )
    gram = reference.gram(grads)
    return {
        "alignment": reference.cross(grads, val).mean(1),
        "gram": gram,
        "squared_norms": jnp.diagonal(gram),
    }


def assert_signals(memory, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(memory[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=name)


def assert_update(state, metrics):
    """Whatever was scored, the update is that of the kept rows, in all parameters."""
    kept = jax.tree.map(lambda x: x[metrics.selected], CANDIDATES)
    trained = {k: v for k, v in PARAMS.items() if k != "count"}
    grads = jax.grad(lambda p: jax.vmap(loss_fn, (None, None, 0))({**PARAMS, **p}, FROZEN, kept).mean())(trained)
    for name, value in trained.items():
        np.testing.assert_allclose(state.params[name], value - RATE * grads[name], rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(state.params["count"], PARAMS["count"])
    assert not metrics.skipped


@pytest.mark.parametrize("validation", ["merged", "cached"])
@pytest.mark.parametrize("passes", ["one", "two"])
def test_one_pass_and_two_see_the_same_signals_and_make_the_same_update(passes, validation):
    state, metrics = run(validation=validation, scoring=Scoring(passes=passes))
    assert_signals(state.memory, laid_out())
    assert_update(state, metrics)
    assert int(metrics.n_validation) == M


@pytest.mark.parametrize("rule", ["greats_first_order", "grad_norm"])
def test_two_passes_serve_rules_with_fewer_needs(rule):
    one, two = (run(rule=rule, scoring=Scoring(passes=passes))[1] for passes in ("one", "two"))
    np.testing.assert_array_equal(one.selected, two.selected)
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-4)


def test_micro_batches_are_exact_in_first_order_and_within_themselves():
    state, metrics = run(scoring=Scoring(passes="two", micro_batches=2))
    expected = laid_out()
    same_part = np.arange(N)[:, None] // 4 == np.arange(N) // 4
    assert_signals(state.memory, {**expected, "gram": jnp.where(same_part, expected["gram"], 0)})
    assert_update(state, metrics)


def test_micro_batches_with_a_projection_see_each_other():
    draws = Scoring(passes="two", micro_batches=4, projection=Projection(64))
    state, metrics = run(scoring=draws)
    exact = laid_out()
    assert_signals(state.memory, {"alignment": exact["alignment"]})
    assert_update(state, metrics)
    far = state.memory["gram"][:4, 4:]
    assert np.corrcoef(far.ravel(), exact["gram"][:4, 4:].ravel())[0, 1] > 0.7


@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("alignment", ["exact", "projected"])
def test_a_projection_estimates_what_it_says(passes, alignment):
    state, metrics = run(scoring=Scoring(passes, projection=Projection(256, alignment)))
    exact = laid_out()
    assert_update(state, metrics)
    for name in ("gram", "squared_norms", "alignment"):
        distance = np.abs(state.memory[name] - exact[name]).max() / np.abs(exact[name]).max()
        assert distance < (1e-4 if (name, alignment) == ("alignment", "exact") else 0.5)
        assert distance > (1e-4 if name == "gram" else 0.0)


def test_one_pass_and_two_draw_the_same_projection():
    memories = [run(scoring=Scoring(p, projection=Projection(16, "projected")))[0].memory for p in ("one", "two")]
    np.testing.assert_allclose(memories[0]["gram"], memories[1]["gram"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("passes", ["one", "two"])
def test_chosen_parameters_score_and_all_are_updated(passes):
    state, metrics = run(scoring=Scoring(passes, leaves=lambda path: "upper" in path))
    assert_signals(state.memory, laid_out("upper"))
    assert_update(state, metrics)


@pytest.mark.parametrize("validation", ["merged", "cached"])
def test_a_split_loss_is_scored_by_its_head_and_updates_everything(validation):
    state, metrics = run(SPLIT, validation=validation, scoring=Scoring(leaves=lambda path: "upper" in path))
    assert_signals(state.memory, laid_out("upper"))
    assert_update(state, metrics)


def test_a_row_that_only_the_trunk_spoils_is_left_out_of_a_split_step():
    """Its score comes from the head and is finite: what it does to the trunk shows in the update."""

    def trapped(params, frozen, example):
        h = trunk(params, frozen, example)
        # Nothing in the value, NaN in the gradient of a row of weight 0.
        return h + 0.0 * jnp.sqrt(example["weight"] * (params["lower"] ** 2).sum())

    candidates = {**CANDIDATES, "weight": CANDIDATES["weight"].at[1].set(0.0)}
    state, metrics = run(SplitLoss(trapped, head, parts), "0*greats_first_order - max_loss", candidates)
    assert int(metrics.selected[0]) == 1, "a loss of 0 ranks first, so that it would be kept"
    assert (float(metrics.shares[1]), int(metrics.n_rejected)) == (0.0, 1)
    assert not metrics.skipped
    kept = jax.tree.map(lambda x: x[metrics.selected[1:]], candidates)
    trained = {k: v for k, v in PARAMS.items() if k != "count"}
    grads = jax.grad(lambda p: jax.vmap(loss_fn, (None, None, 0))({**PARAMS, **p}, FROZEN, kept).mean())(trained)
    for name, value in trained.items():
        np.testing.assert_allclose(state.params[name], value - RATE * grads[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_shared_table_scores_by_its_use_in_the_head():
    state, metrics = run(SPLIT)

    def through_the_head(upper, frozen, example):
        return head({**PARAMS, **upper}, frozen, jax.lax.stop_gradient(trunk(PARAMS, frozen, example)), example)

    upper = {"table": PARAMS["table"], "upper": PARAMS["upper"]}
    grads = reference.per_example_grads(through_the_head, upper, FROZEN, CANDIDATES)
    assert_signals(state.memory, {"gram": reference.gram(grads)})
    assert_update(state, metrics)


def test_a_pair_of_functions_takes_a_pair_of_parameters():
    lower, upper = parts(PARAMS)
    optimizer = optax.sgd(RATE)
    step = make_selective_step((trunk, head), optimizer, keep=4, learning_rate=RATE)
    state, metrics = step(TrainState.create((lower, upper), optimizer), FROZEN, CANDIDATES, VALIDATION)
    together, expected = run(SPLIT, "greats")
    np.testing.assert_array_equal(metrics.selected, expected.selected)
    np.testing.assert_allclose(state.params[0]["lower"], together.params["lower"], rtol=1e-5)


@pytest.mark.parametrize("rule", ["max_loss", "random_k"])
def test_rules_without_gradients_take_a_split_loss_too(rule):
    state, metrics = run(SPLIT, rule)
    assert_update(state, metrics)


def test_the_backward_pass_of_dropped_rows_stops_below_the_head():
    """The trunk's backward pass has k rows: no array of its cotangents has n + m."""
    optimizer = optax.sgd(RATE)

    def backward_rows(loss):
        step = make_selective_step(loss, optimizer, keep=4, learning_rate=RATE, scoring=Scoring())
        state = TrainState.create(PARAMS, optimizer)
        jaxpr = jax.make_jaxpr(step)(state, FROZEN, CANDIDATES, VALIDATION)
        return sorted(_carries_of_reverse_scans(jaxpr.jaxpr))

    assert backward_rows(SPLIT) == [4, N + M]
    assert backward_rows(loss_fn) == [N + M, N + M]


def _carries_of_reverse_scans(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "while":
            continue  # turns only when a row that was kept is not finite
        if eqn.primitive.name == "scan" and eqn.params["reverse"]:
            yield eqn.outvars[0].aval.shape[0]
        for inner in jex.jaxprs_in_params(eqn.params):
            yield from _carries_of_reverse_scans(inner)


@pytest.mark.parametrize("flatten", [False, True], ids=["rows on an axis", "rows folded into another axis"])
def test_a_backward_pass_is_resumed_for_some_rows(flatten):
    def model(w, x):
        shape = (-1, 3) if flatten else x.shape
        return jnp.tanh(jnp.tanh(x.reshape(shape) @ w) @ w).reshape(x.shape)

    w, x, indices = normal(0, 3, 3), normal(1, 6, 2, 3), jnp.asarray([4, 1, 1])
    arriving = normal(2, 3, 2, 3)
    outputs, resume = resumable(model, w, x)
    np.testing.assert_allclose(outputs, model(w, x), rtol=1e-6)
    expected = jax.vjp(lambda w: model(w, x[indices]), w)[1](arriving)[0]
    np.testing.assert_allclose(resume(indices, arriving), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "scoring",
    [Scoring("two"), Scoring("two", 2), Scoring(projection=Projection(64, "projected")), "split"],
    ids=["two passes", "micro-batches", "projected", "split"],
)
def test_rows_that_are_not_finite_are_dropped_in_every_mode(scoring):
    candidates = {**CANDIDATES, "weight": CANDIDATES["weight"].at[1].set(jnp.nan)}
    if isinstance(scoring, Scoring):
        state, metrics = run(candidates=candidates, scoring=scoring)
    else:
        state, metrics = run(SPLIT, candidates=candidates)
    assert 1 not in np.asarray(metrics.selected)
    assert int(metrics.n_rejected) == 1
    assert not metrics.skipped
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_combinations_that_cannot_be_are_named():
    cases = {
        "at least one feature": lambda: Projection(0),
        "choose 'exact' or 'projected'": lambda: Projection(8, "some"),  # type: ignore[arg-type]
        "choose 'one' or 'two'": lambda: Scoring("three"),  # type: ignore[arg-type]
        "set passes='two'": lambda: Scoring(micro_batches=2),
        "exactly": lambda: Scoring("two", 2, projection=Projection(8, "projected")),
        "at least one part": lambda: Scoring("two", 0),
        "same step": lambda: run(validation="cached", scoring=Scoring(projection=Projection(8, "projected"))),
        "choose a divisor of 8": lambda: run(scoring=Scoring("two", 3)),
        "no parameter is chosen": lambda: run(scoring=Scoring(leaves=lambda path: False)),
    }
    for words, mistake in cases.items():
        with pytest.raises(ArgumentError, match=words):
            mistake()


def test_a_scoring_is_a_value():
    assert dataclasses.replace(Scoring(), passes="two") == Scoring("two")
