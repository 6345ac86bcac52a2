"""The analysis of a tiny model, from its configuration."""

import math

import jax
import numpy as np
import pytest
from tiny import tiny_config

from greats_jax.analysis import hessian_times, inner, spearman
from greats_jax.analysis.taylor_run import (
    GRADIENT_DESCENT,
    OPTIMIZER,
    PREDICTIONS,
    TaylorPlan,
    TaylorResult,
    draw_subsets,
    run_taylor,
)
from greats_jax.data import collate
from greats_jax.errors import ConfigError
from greats_jax.models import combine, load_tokenizer, partition
from greats_jax.training.config_loading import load_config
from greats_jax.training.losses import language_model_loss, language_rows
from greats_jax.training.setup import load_data, load_initial


@pytest.fixture(scope="module")
def load(tiny_model, tiny_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("taylor") / "tiny.yaml"
    path.write_text(tiny_config(tiny_model, tiny_data, path.parent / "run"))
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture(scope="module")
def analysed(load) -> tuple[TaylorResult, list]:
    seen: list = []
    plan = TaylorPlan(subsets=24, batches=2, after=3)
    return run_taylor(load(), plan, seen.append, lambda *numbers: seen.append(numbers)), seen


def chosen(result: TaylorResult, step: str, factor: float) -> list:
    return [o for o in result.outcomes if o.step == step and math.isclose(o.rate, result.rate * factor)]


def test_every_subset_is_tried_and_some_at_every_rate(analysed):
    result, seen = analysed
    for step in PREDICTIONS:
        assert len(chosen(result, step, 1)) == 24
        assert len(chosen(result, step, 10)) == 12
    assert seen[0] == "training for 3 updates on all candidates"
    assert seen[-1] == (24, 24)
    assert all(len(outcome.members) == 3 for outcome in result.outcomes)


def test_first_order_holds_for_short_steps_of_gradient_descent(analysed):
    result, _ = analysed
    for outcome in chosen(result, GRADIENT_DESCENT, 1):
        assert outcome.predictions["first order"] == pytest.approx(outcome.actual, abs=2e-5)


def test_the_hessian_is_nearer_than_first_order_for_longer_steps(analysed):
    result, _ = analysed
    long = chosen(result, GRADIENT_DESCENT, 10)
    errors = {n: np.mean([abs(o.predictions[n] - o.actual) for o in long]) for n in PREDICTIONS[GRADIENT_DESCENT]}
    assert errors["Hessian"] < errors["first order"] / 2


def test_second_order_of_the_update_is_nearer_than_first(analysed):
    result, _ = analysed
    short = [o for o in chosen(result, OPTIMIZER, 1) if not math.isnan(o.predictions["update and Hessian"])]
    assert len(short) == 12
    errors = {n: np.mean([abs(o.predictions[n] - o.actual) for o in short]) for n in PREDICTIONS[OPTIMIZER]}
    assert errors["update and Hessian"] < errors["update"] / 2
    assert spearman([o.actual for o in short], [o.predictions["update"] for o in short]) > 0.9


@pytest.mark.slow
def test_with_plain_gradient_descent_both_steps_are_one(load):
    settings = ("optimizer.name=sgd", "optimizer.clip=null")
    result = run_taylor(load(*settings), TaylorPlan(subsets=6, batches=1, after=0, factors=(1.0,)))
    pairs = zip(chosen(result, GRADIENT_DESCENT, 1), chosen(result, OPTIMIZER, 1), strict=True)
    for down, update in pairs:
        assert update.actual == pytest.approx(down.actual, abs=1e-6)
        assert update.predictions["preconditioned"] == pytest.approx(down.predictions["first order"], rel=1e-4)
        assert update.predictions["update"] == pytest.approx(down.predictions["first order"], rel=1e-4)


def test_a_result_is_a_function_of_the_configuration(analysed, load):
    again = run_taylor(load(), TaylorPlan(subsets=24, batches=2, after=3, factors=(1.0,)))
    before = [outcome for step in PREDICTIONS for outcome in chosen(analysed[0], step, 1)]
    after = [outcome for step in PREDICTIONS for outcome in chosen(again, step, 1)]
    assert [o.members for o in before] == [o.members for o in after]
    assert [o.actual for o in before] == [o.actual for o in after]


def test_the_hessian_of_a_decoder_is_a_difference_of_its_gradients(load):
    config = load("lora=null")
    data = load_data(config, load_tokenizer(config.model.source))
    graphdef, params, frozen = partition(load_initial(config))
    rows = language_rows(collate(data.validation, 32, data.pool.pad_id))
    loss_fn = language_model_loss(graphdef, combine)

    def loss(p):
        return jax.vmap(loss_fn, in_axes=(None, None, 0))(p, frozen, rows).mean()

    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    direction = treedef.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    step = 1e-3
    gradient = jax.jit(jax.grad(lambda r: loss(jax.tree.map(lambda p, d: p + r * d, params, direction))))
    along = inner(direction, jax.jit(lambda: hessian_times(loss, params, direction))())
    assert abs(float(along)) > 0.1
    assert float(along) == pytest.approx(float(gradient(step) - gradient(-step)) / (2 * step), rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "plan", "message"),
    [
        (["keep=6"], TaylorPlan(), "too few to compare"),
        (["batch=2", "keep=1"], TaylorPlan(), "a batch of 2 has 2 subsets of 1"),
        ([], TaylorPlan(after=4), "--after is 4, but the run has 3 updates"),
    ],
)
def test_what_cannot_be_analysed_is_refused(load, overrides, plan, message):
    with pytest.raises(ConfigError, match=message):
        run_taylor(load(*overrides), plan)


def test_subsets_are_distinct_and_of_usable_candidates():
    drawn = draw_subsets([0, 2, 3, 5, 7, 8, 9, 11, 12, 14, 15, 17], 6, 50, (1, 2))
    assert len(set(drawn)) == 50
    assert all(len(set(subset)) == 6 for subset in drawn)
    assert set().union(*drawn) <= {0, 2, 3, 5, 7, 8, 9, 11, 12, 14, 15, 17}
    assert drawn == draw_subsets([0, 2, 3, 5, 7, 8, 9, 11, 12, 14, 15, 17], 6, 50, (1, 2))


def test_all_subsets_there_are_where_they_are_few():
    assert sorted(draw_subsets([1, 2, 4], 2, 50, (0,))) == [(1, 2), (1, 4), (2, 4)]
    assert draw_subsets([1, 2], 2, 50, (0,)) == []
