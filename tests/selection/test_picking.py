"""From scores to picks: the functions that every rule shares."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from random_signals import INF, NAN, picked
from slow_rules import slow_greedy

from greats_jax.selection import draw, greedy, greedy_within, standardised, top_k

N = 6
# Small whole numbers: many ties, and sums without rounding.
ROWS = st.lists(st.integers(-2, 2), min_size=N, max_size=N)
FLAGS = st.lists(st.booleans(), min_size=N, max_size=N)
SQUARE = st.lists(ROWS, min_size=N, max_size=N)
fast_top, fast_greedy, fast_within = (jax.jit(f, static_argnames="k") for f in (top_k, greedy, greedy_within))


@settings(deadline=None, max_examples=100)
@given(ROWS, FLAGS, st.sampled_from([1, 4, N, N + 2]))
def test_the_best_allowed_come_first_and_ties_in_order(scores, allowed, k):
    found = fast_top(jnp.asarray(scores, jnp.float32), k=k, allowed=jnp.asarray(allowed))
    expected = sorted((i for i in range(N) if allowed[i]), key=lambda i: (-scores[i], i))[:k]
    assert picked(found) == expected
    assert found.indices.tolist() == expected + [0] * (k - len(expected))


@settings(deadline=None, max_examples=100)
@given(ROWS, SQUARE, FLAGS, st.sampled_from([1, 4, N, N + 2]))
def test_greedy_takes_the_overlap_of_each_pick_from_the_others(scores, overlap, allowed, k):
    overlap = np.asarray(overlap)
    left = [i for i in range(N) if allowed[i]]
    args = (jnp.asarray(scores, jnp.float32), jnp.asarray(overlap, jnp.float32))
    found = fast_greedy(*args, k=k, allowed=jnp.asarray(allowed))
    assert picked(found) == slow_greedy(scores, overlap, k, left)
    without = fast_greedy(args[0], None, k=k, allowed=jnp.asarray(allowed))
    assert picked(without) == slow_greedy(scores, None, k, left)


@settings(deadline=None, max_examples=100)
@given(ROWS, SQUARE, FLAGS, st.lists(st.integers(0, 2), min_size=N, max_size=N), st.integers(0, 3))
def test_no_group_gets_more_than_its_limit(scores, overlap, allowed, groups, limit):
    overlap = np.asarray(overlap)
    args = (jnp.asarray(scores, jnp.float32), jnp.asarray(overlap, jnp.float32))
    found = fast_within(*args, k=4, allowed=jnp.asarray(allowed), groups=jnp.asarray(groups), limits=limit)
    left = [i for i in range(N) if allowed[i]]
    assert picked(found) == slow_greedy(scores, overlap, 4, left, groups, limit)


def test_groups_can_have_limits_of_their_own():
    groups, scores = jnp.asarray([0, 0, 0, 1, 1, 2]), jnp.asarray([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    limits = jnp.asarray([2, 0, 1])[groups]
    found = fast_within(scores, None, k=5, allowed=jnp.ones(N, bool), groups=groups, limits=limits)
    assert picked(found) == [0, 1, 5]


def test_what_a_forbidden_candidate_holds_reaches_nobody():
    scores = jnp.asarray([NAN, 1.0, INF, 3.0, -INF, 2.0])
    allowed = jnp.isfinite(scores)
    overlap = jnp.where(allowed[:, None] & allowed, 0.0, NAN)
    assert picked(fast_top(scores, k=N, allowed=allowed)) == [3, 5, 1]
    assert picked(fast_greedy(scores, overlap, k=N, allowed=allowed)) == [3, 5, 1]
    drawn = jax.jit(draw, static_argnames="k")(scores, k=N, allowed=allowed, key=jax.random.key(0))
    assert sorted(picked(drawn)) == [1, 3, 5]


def test_zero_of_either_sign_is_a_tie():
    scores = jnp.asarray([-0.0, 0.0, -0.0, 0.0, -0.0, 0.0])
    allowed = jnp.ones(N, bool)
    assert picked(fast_top(scores, k=3, allowed=allowed)) == [0, 1, 2]
    assert picked(fast_greedy(scores, jnp.zeros((N, N)), k=3, allowed=allowed)) == [0, 1, 2]


scale = jax.jit(standardised)


def test_standardised_values_have_mean_0_and_deviation_1_at_every_scale():
    rng = np.random.default_rng(0)
    for size in (1e-28, 1e-12, 1.0, 1e12, 1e37):
        values = rng.normal(size=N) + 3
        allowed = np.array([True, True, False, True, True, True])
        found, deviation = scale(jnp.asarray(size * values, jnp.float32), jnp.asarray(allowed))
        kept = values[allowed]
        np.testing.assert_allclose(found[allowed], (kept - kept.mean()) / kept.std(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(float(deviation) / size, kept.std(), rtol=1e-4)


def test_values_that_do_not_differ_are_0_with_deviation_1():
    # Six times 0.1 or 1e38 has a mean in float32 that is none of them.
    for value in (0.0, 0.1, -0.7, 1e38):
        for allowed in (jnp.ones(N, bool), jnp.arange(N) == 2):
            found, deviation = scale(jnp.full(N, value), allowed)
            assert found[allowed].tolist() == [0.0] * int(allowed.sum())
            assert float(deviation) == 1.0


def test_values_that_are_not_allowed_count_for_nothing_and_stay():
    values, allowed = jnp.asarray([1.0, NAN, 3.0, INF, 2.0, 50.0]), jnp.asarray([1, 0, 1, 0, 1, 0], bool)
    found, deviation = scale(values, allowed)
    np.testing.assert_allclose(found, [-(1.5**0.5), NAN, 1.5**0.5, INF, 0, 50.0], atol=1e-6)
    np.testing.assert_allclose(deviation, (2 / 3) ** 0.5, rtol=1e-6)
    nothing, one = scale(values, jnp.zeros(N, bool))
    np.testing.assert_array_equal(nothing, values)
    assert float(one) == 1.0
