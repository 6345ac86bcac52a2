"""Each rule against a slow, obvious NumPy version, and the cases where signals are degenerate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greats_jax.errors import ArgumentError
from greats_jax.selection import Rule, Selection, Signals, get, names, register, top_k

KEY = jax.random.key(0)
NAN, INF = float("nan"), float("inf")


def random_signals(seed: int, n: int) -> Signals:
    """Signals as n real gradients would give them, with some invalid and some non-finite candidates."""
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(n, 5)).astype(np.float32)
    losses = rng.uniform(0.1, 4, n).astype(np.float32)
    losses[rng.random(n) < 0.15] = NAN
    alignment = grads @ rng.normal(size=5).astype(np.float32)
    alignment[rng.random(n) < 0.15] = INF
    gram = grads @ grads.T
    valid = rng.random(n) > 0.15
    arrays = {
        "losses": losses,
        "alignment": alignment,
        "gram": gram,
        "squared_norms": np.diagonal(gram),
        "valid": valid,
    }
    return Signals(**{name: jnp.asarray(array) for name, array in arrays.items()})


def slow_greedy(scores, overlap, k, allowed):
    """Algorithm 1 of GREATS, one pick at a time."""
    scores, left, picks = scores.astype(np.float64), [i for i in range(len(scores)) if allowed[i]], []
    while left and len(picks) < k:
        best = max(left, key=lambda i: (scores[i], -i))
        picks.append(best)
        left.remove(best)
        for i in left:
            scores[i] -= overlap[best, i]
    return picks


def slow_choice(name: str, s: Signals, k: int, eta: float) -> list[int]:
    losses, alignment, gram = (np.asarray(x) for x in (s.losses, s.alignment, s.gram))
    allowed = np.asarray(s.valid) & np.isfinite(losses)
    none = np.zeros_like(gram)
    match name:
        case "regular":
            return [i for i in range(len(allowed)) if allowed[i]][:k]
        case "max_loss":
            return slow_greedy(losses, none, k, allowed)
        case "grad_norm":
            return slow_greedy(np.sqrt(np.asarray(s.squared_norms)), none, k, allowed)
        case "greats_first_order":
            return slow_greedy(alignment, none, k, allowed & np.isfinite(alignment))
        case "greats":
            return slow_greedy(alignment, eta * gram, k, allowed & np.isfinite(alignment))
    raise AssertionError(name)


def picked(selection: Selection) -> list[int]:
    return [int(i) for i, w in zip(selection.indices, selection.weights, strict=True) if w > 0]


@pytest.mark.parametrize("name", ["regular", "max_loss", "grad_norm", "greats_first_order", "greats"])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 3, 7]), eta=st.sampled_from([0.0, 0.05, 2.0]))
def test_a_rule_picks_what_the_obvious_version_picks(name, seed, k, eta):
    signals = random_signals(seed, 7)
    found = get(name)(signals, k, learning_rate=eta, key=KEY)
    expected = slow_choice(name, signals, k, eta)
    assert picked(found) == expected
    assert found.indices.shape == found.weights.shape == (k,)
    assert not np.any(found.indices[len(expected) :]), "empty slots have index 0"


def test_rules_run_under_jit():
    signals = random_signals(1, 6)
    for name in ("regular", "random_k", "max_loss", "grad_norm", "greats_first_order", "greats"):
        outside = get(name)(signals, 3, learning_rate=0.1, key=KEY)
        inside = jax.jit(lambda s, name=name: get(name)(s, 3, learning_rate=0.1, key=KEY))(signals)
        np.testing.assert_array_equal(inside.indices, outside.indices)


def test_ties_go_to_the_lower_index():
    signals = Signals(alignment=jnp.ones(5), gram=jnp.zeros((5, 5)), losses=jnp.ones(5), squared_norms=jnp.ones(5))
    for name in ("regular", "max_loss", "grad_norm", "greats_first_order", "greats"):
        assert picked(get(name)(signals, 3, learning_rate=0.1, key=KEY)) == [0, 1, 2]


def test_overlap_makes_greats_avoid_a_duplicate():
    gradients = jnp.asarray([[2.0, 0.0], [2.0, 0.0], [0.0, 1.5]])
    signals = Signals(alignment=gradients.sum(1), gram=gradients @ gradients.T)
    assert picked(get("greats")(signals, 2, learning_rate=1.0, key=KEY)) == [0, 2]
    assert picked(get("greats_first_order")(signals, 2)) == [0, 1]


def test_without_a_learning_rate_in_warm_up_greats_is_the_first_order_rule():
    signals = random_signals(3, 8)
    greedy = get("greats")(signals, 4, learning_rate=0.0, key=KEY)
    np.testing.assert_array_equal(greedy.indices, get("greats_first_order")(signals, 4).indices)


def test_random_k_is_uniform_reproducible_and_without_replacement():
    signals = Signals(valid=jnp.asarray([True, True, False, True, True]))
    draw = jax.jit(lambda key: get("random_k")(signals, 2, key=key).indices)
    counts = np.bincount(np.concatenate([draw(jax.random.key(i)) for i in range(400)]), minlength=5)
    assert counts[2] == 0
    assert counts.sum() == 800
    assert np.all(np.abs(counts[[0, 1, 3, 4]] - 200) < 60), counts
    np.testing.assert_array_equal(draw(KEY), draw(KEY))
    assert len(set(draw(KEY).tolist())) == 2


def test_when_nothing_can_be_picked_all_weights_are_zero():
    signals = Signals(alignment=jnp.full(3, NAN), gram=jnp.full((3, 3), NAN))
    found = get("greats")(signals, 2, learning_rate=0.1, key=KEY)
    assert picked(found) == []
    assert found.indices.tolist() == [0, 0]


def test_a_new_rule_is_one_function():
    @register("shortest_test_rule", needs={"losses"})
    def lowest_loss(signals, k, *, learning_rate, key):
        return top_k(-signals.losses, k, jnp.isfinite(signals.losses))

    assert isinstance(lowest_loss, Rule)
    assert "shortest_test_rule" in names()
    assert picked(get("shortest_test_rule")(Signals(losses=jnp.asarray([3.0, 1.0, 2.0])), 2)) == [1, 2]


@pytest.mark.parametrize("name", ["max_loss", "greats"])
def test_there_are_k_slots_even_when_k_is_more_than_n(name):
    signals = Signals(losses=jnp.ones(2), alignment=jnp.ones(2), gram=jnp.eye(2))
    found = get(name)(signals, 4, learning_rate=0.1, key=KEY)
    assert found.weights.tolist() == [1, 1, 0, 0]
    assert found.indices.shape == (4,)


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match="did you mean 'greats'"):
        get("great")
    with pytest.raises(ArgumentError, match=r"unknown signals.*'gradients'"):
        register("x", needs={"gradients"})
    with pytest.raises(ArgumentError, match="needs the signal 'gram'"):
        get("greats")(Signals(alignment=jnp.ones(3)), 1, learning_rate=0.1)
    with pytest.raises(ArgumentError, match="learning_rate"):
        get("greats")(Signals(alignment=jnp.ones(3), gram=jnp.eye(3)), 1)
    with pytest.raises(ArgumentError, match="key="):
        get("random_k")(Signals(losses=jnp.ones(3)), 1)
    with pytest.raises(ArgumentError, match="all empty"):
        get("regular")(Signals(), 1)
