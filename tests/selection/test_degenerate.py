"""What every rule does where signals are degenerate: ties, broken and missing candidates, the smallest sizes."""

import jax
import numpy as np
import pytest
from random_signals import (
    DETERMINISTIC,
    INF,
    NAN,
    RANDOM,
    RULES,
    UDS,
    all_picks,
    choose,
    random_signals,
    signals_of,
    slots,
    with_one,
    with_one_gram,
)

from greats_jax.selection import Signals, get

# All rules but those that read no signal, and the fields in which one candidate can break them.
BREAKABLE = [
    (name, field)
    for name in RULES
    for field in sorted(get(name).needs | {"losses"})
    if field not in ("memory", "sources", "validation_embeddings")
]


def break_one(signals: Signals, field: str, index: int, value: float) -> Signals:
    """The signals with the candidate's part of one of them not finite."""
    if field == "gram":
        return signals._replace(gram=with_one_gram(signals.gram, index, value))
    whole = getattr(signals, field)
    if field == "per_leaf_alignment":
        return signals._replace(per_leaf_alignment={**whole, "stacked": with_one(whole["stacked"].T, index, value).T})
    return signals._replace(**{field: jax.tree.map(lambda x: with_one(x, index, value), whole)})


def without(signals: Signals, index: int) -> Signals:
    """The signals as if the candidate had no labels."""
    return signals._replace(valid=with_one(signals.valid, index, False))


@pytest.mark.parametrize(("name", "field"), BREAKABLE)
def test_a_candidate_that_is_not_finite_is_never_picked_and_the_others_are_picked_without_it(name, field):
    for seed, index in ((0, 0), (1, 3), (2, 6)):
        signals = random_signals(seed)
        for value in (NAN, INF, -INF):
            broken = break_one(signals, field, index, value)
            for k in (3, 7):
                assert all_picks(choose(name, broken, k)) == all_picks(choose(name, without(signals, index), k))
                assert all(index not in picks for picks in all_picks(choose(name, broken, k)))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_candidate_without_labels_counts_as_absent(name):
    for index in (0, 3, 6):
        signals = random_signals(index)
        rest = [i for i in range(7) if i != index]
        shorter = absent(signals, index)
        expected = [[rest[i] for i in picks] for picks in all_picks(choose(name, shorter, 3))]
        assert all_picks(choose(name, without(signals, index), 3)) == expected


def absent(signals: Signals, index: int) -> Signals:
    """The signals of the others only."""

    def rows(value):
        return jax.tree.map(lambda x: np.delete(x, index, axis=-1 if x.shape[-1:] == (7,) else 0), value)

    fields = {f: rows(v) for f, v in signals._asdict().items() if v is not None and f != "validation_embeddings"}
    fields["gram"] = np.delete(np.delete(np.asarray(signals.gram), index, axis=0), index, axis=1)
    return signals_of(**fields, validation_embeddings=signals.validation_embeddings)


def all_equal(level: float) -> Signals:
    """Seven candidates that no signal tells apart, whose gradients are at right angles to each other."""
    n, signals = 7, random_signals(0)
    alike = jax.tree.map(lambda x: np.full(x.shape, level), signals)
    return alike._replace(gram=level * np.eye(n), sources=np.zeros(n, np.int32), valid=np.ones(n, bool))


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_ties_go_to_the_lower_index(name, k):
    for level in (0.1, 3.0):  # the mean of seven times 0.1 is not 0.1 in float32
        room = 2 if "budgets" in name else k
        assert all(picks == list(range(min(k, room))) for picks in all_picks(choose(name, all_equal(level), k)))


@pytest.mark.parametrize("name", RULES)
def test_all_are_picked_once_when_all_are_kept(name):
    signals = all_equal(0.1) if "partition_sel" in name else random_signals(4)
    expected = [0, 1] if "budgets" in name else list(range(7))
    for picks in all_picks(choose(name, signals, 7)):
        assert sorted(picks) == expected


@pytest.mark.parametrize("name", RULES)
def test_one_candidate_is_picked_if_it_can_be(name):
    # One whose gradient helps, for PartitionSel picks nothing that does not; of a source that has a budget.
    signals = random_signals(0, n=1)._replace(alignment=np.ones(1), sources=np.zeros(1, np.int32))
    assert all(picks == [0] for picks in all_picks(choose(name, signals, 1)))
    assert all(picks == [] for picks in all_picks(choose(name, without(signals, 0), 1)))


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_picked_where_nothing_can_be(name):
    signals = random_signals(5)
    broken = jax.tree.map(lambda x: x * NAN if x.dtype == np.float32 else x, signals)
    for useless in (signals._replace(valid=np.zeros(7, bool)), broken):
        for k in (3, 7):
            for found in slots(choose(name, useless, k)):
                assert not np.any(found.weights)
                assert not np.any(found.indices)


@pytest.mark.parametrize("name", ["max_loss", "greats", "layer_wise", "partition_sel", "random_k", UDS])
def test_there_are_k_slots_even_when_k_is_more_than_n(name):
    signals = random_signals(0, n=1)._replace(alignment=np.ones(1), sources=np.zeros(1, np.int32))
    for found in slots(choose(name, signals, 3)):
        assert found.indices.shape == found.weights.shape == (*found.indices.shape[:-1], 3)
        assert not found.indices.any()
        np.testing.assert_array_equal(found.weights > 0, np.broadcast_to(np.arange(3) == 0, found.weights.shape))


def test_sbert_with_one_validation_example_ranks_by_the_cosine_to_it():
    rows = np.asarray([[0.0, 3.0], [2.0, 2.0], [0.1, 0.0], [0.0, 0.0]])
    signals = signals_of(embeddings=rows, validation_embeddings=np.asarray([[5.0, 0.0]]))
    found = choose("sbert", signals, 4)
    np.testing.assert_allclose(found.scores, [0, 0.5**0.5, 1, 0], atol=1e-6)
    assert found.indices.tolist() == [2, 1, 0, 3]


def test_a_norm_that_rounding_left_below_zero_is_a_norm_of_zero():
    signals = signals_of(losses=np.ones(3), alignment=np.asarray([1.0, 0.0, -1.0]),
                      squared_norms=np.asarray([1.0, -1e-9, 1.0]))  # fmt: skip
    assert choose("grad_norm", signals, 3).indices.tolist() == [0, 2, 1]
    assert choose("cosine", signals, 3).indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", [*RANDOM, UDS, "greats"])
def test_equal_scores_at_extreme_scales_are_still_picked(name):
    for level in (1e-30, 1e30):
        signals = random_signals(0)
        flat = signals._replace(alignment=np.full(7, level), preconditioned_alignment=np.full(7, level))
        assert all(len(picks) == 3 for picks in all_picks(choose(name, flat, 3)))
