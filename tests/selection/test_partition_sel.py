"""PartitionSel against matching pursuit with exact weights, and against every support there is."""

import itertools

import numpy as np
import pytest
from random_signals import choose, picked, random_signals, signals_of, with_some_invalid
from slow_rules import best_weights, objective, slow_pursuit

from greats_jax.errors import ArgumentError
from greats_jax.selection import Selection, Signals, get

BUDGETS = {
    "partition_sel": None,
    "partition_sel(budgets=(2, 1))": (2, 1),
    "partition_sel(budgets=(0, 3, 3))": (0, 3, 3),
}


def full_weights(found: Selection, n: int) -> np.ndarray:
    weights = np.zeros(n)
    np.add.at(weights, np.asarray(found.indices), np.asarray(found.weights, np.float64))
    return weights


def of(signals: Signals) -> tuple[np.ndarray, np.ndarray]:
    """Target and Gram matrix in float64."""
    return np.asarray(signals.alignment, np.float64), np.asarray(signals.gram, np.float64)


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("k", [1, 3])
def test_picks_and_weights_are_those_of_exact_matching_pursuit(name, k):
    for seed in range(25):
        signals = with_some_invalid(random_signals(seed), seed)
        found = choose(name, signals, k)
        picks, history = slow_pursuit(signals, k, BUDGETS[name])
        weights = history[-1] if history else np.zeros(7)
        np.testing.assert_allclose(full_weights(found, 7), weights, rtol=2e-3, atol=2e-3)
        assert picked(found) == [i for i in picks if weights[i] > 0]


@pytest.mark.parametrize("name", BUDGETS)
def test_weights_of_the_picks_solve_the_non_negative_programme(name):
    for seed in range(25):
        signals = random_signals(seed)
        found = choose(name, signals, 7)
        target, gram = of(signals)
        weights = full_weights(found, 7)
        assert (weights >= 0).all()
        # What a picked candidate would still gain is nothing: neither more nor less of it helps.
        left = (target - gram @ weights)[picked(found)]
        np.testing.assert_allclose(left, 0, atol=5e-3)
        exact = best_weights(target, gram, picked(found))
        assert objective(target, gram, weights) >= objective(target, gram, exact) * (1 - 1e-4)


def test_with_room_for_all_it_reaches_the_best_of_all_supports():
    for seed in range(25):
        signals = random_signals(seed)
        target, gram = of(signals)
        best = objective(target, gram, best_weights(target, gram, range(7)))
        assert objective(target, gram, full_weights(choose("partition_sel", signals, 7), 7)) >= best * (1 - 1e-3)


def test_pursuit_is_never_above_the_best_support_and_mostly_at_it():
    ratios = []
    for seed in range(25):
        signals = random_signals(seed)
        target, gram = of(signals)
        supports = itertools.combinations(range(7), 3)
        best = max(objective(target, gram, best_weights(target, gram, support)) for support in supports)
        ratios.append(objective(target, gram, full_weights(choose("partition_sel", signals, 3), 7)) / best)
    assert max(ratios) <= 1 + 1e-4
    assert min(ratios) > 0.6, "greedy need not find the best, but what it finds is no accident"
    assert np.mean(np.array(ratios) > 1 - 1e-3) > 0.5


@pytest.mark.parametrize(("n", "size"), [(24, 40), (24, 6)], ids=["independent", "many more than dimensions"])
def test_with_room_for_all_nothing_is_left_to_gain(n, size):
    """The conditions of Karush, Kuhn and Tucker, which only the best of all non-negative weights fulfil."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        grads = rng.normal(size=(n, size)) * 10.0 ** rng.uniform(-2, 2, (n, 1))
        target = rng.normal(size=size)
        signals = signals_of(alignment=(grads @ target).astype(np.float32), gram=(grads @ grads.T).astype(np.float32))
        found = choose("partition_sel", signals, n)
        weights = full_weights(found, n)
        left = grads @ (target - grads.T @ weights) / np.linalg.norm(grads, axis=1)
        scale = np.linalg.norm(target)
        assert left.max() < 1e-4 * scale
        assert np.abs(left[picked(found)]).max() < 1e-4 * scale
        assert len(picked(found)) > 2


def test_gradients_at_right_angles_are_weighed_by_what_each_explains():
    lengths = np.asarray([1.0, 2.0, 0.5, 4.0])
    signals = signals_of(alignment=np.asarray([1.0, 6.0, 2.0, -3.0]), gram=np.diag(lengths**2))
    found = choose("partition_sel", signals, 3)
    # Normalised gains 1, 3 and 4; the last one would point away from the target.
    assert found.indices.tolist() == [2, 1, 0]
    np.testing.assert_allclose(found.weights, [8.0, 1.5, 1.0], rtol=1e-6)


def test_a_duplicate_adds_nothing_and_leaves_its_slot_empty():
    grads = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    signals = signals_of(alignment=np.asarray(grads @ [2.0, 1.0]), gram=np.asarray(grads @ grads.T))
    found = choose("partition_sel", signals, 3)
    assert picked(found) == [0, 2]
    np.testing.assert_allclose(full_weights(found, 3), [2.0, 0.0, 1.0], rtol=1e-6)


def test_a_gradient_of_zero_is_not_picked():
    signals = signals_of(alignment=np.asarray([0.0, 1.0]), gram=np.diag(np.asarray([0.0, 1.0])))
    assert picked(choose("partition_sel", signals, 2)) == [1]


def test_budgets_are_kept_also_by_sources_that_nobody_or_nothing_has():
    signals = random_signals(0)._replace(
        alignment=np.arange(1.0, 8.0), gram=np.eye(7), sources=np.asarray([0, 0, 3, 3, 9, 9, 9])
    )
    # Source 1 and 2 have no candidate, source 0 no room, and source 9 is beyond the list.
    assert picked(choose("partition_sel(budgets=(0, 5, 5, 1))", signals, 3)) == [3]
    assert picked(choose("partition_sel(budgets=(2, 5, 5, 1))", signals, 3)) == [3, 1, 0]
    assert picked(choose("partition_sel(budgets=(0, 0))", signals, 3)) == []
    assert picked(choose("partition_sel(budgets=[0, 0, 0, 2])", signals, 3)) == [3, 2]


def test_the_weights_scale_with_the_target_and_the_picks_do_not_change():
    signals = random_signals(1)
    one = choose("partition_sel", signals, 3)
    much = choose("partition_sel", signals._replace(alignment=1e-6 * np.asarray(signals.alignment)), 3)
    assert picked(one) == picked(much)
    np.testing.assert_allclose(1e6 * much.weights, one.weights, rtol=1e-4)


@pytest.mark.parametrize("budgets", [3, (1, "a"), (-1, 2), (0.5,)])
def test_budgets_that_are_no_numbers_of_picks_are_refused(budgets):
    with pytest.raises(ArgumentError, match="one number of picks per source"):
        get("partition_sel", budgets=budgets)(random_signals(0), 3)


def test_budgets_need_to_know_the_sources():
    with pytest.raises(ArgumentError, match="needs the signal 'sources'"):
        get("partition_sel", budgets=(1, 1))(random_signals(0)._replace(sources=None), 3)
